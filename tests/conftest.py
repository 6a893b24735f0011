"""A small made world, and a configuration of a tiny run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.synthetic import WorldSize, write_demo_world
from tests.helpers.places import SHARED
from tests.helpers.runs import tiny_config


def pytest_collection_modifyitems(config, items):
    """Tests of data beside the checkout are left out where it is not: they are no part of a clone."""
    if SHARED.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("shared")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_header() -> str | None:
    return None if SHARED.is_dir() else f"no {SHARED.name}/ beside the checkout: tests of real data are left out"


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_demo_world(folder, 0, WorldSize(shapes=48, pairs=32, clips=24, clip_captions=6, sentences=48, evaluation=16))
    return folder


@pytest.fixture
def config(world, tmp_path) -> Path:
    return tiny_config(world, tmp_path)
