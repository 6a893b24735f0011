"""A small made world, and a configuration of a tiny run on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from data.synthetic import WorldSize, write_demo_world
from tests.helpers.devices import NO_DEVICE
from tests.helpers.places import SHARED
from tests.helpers.runs import tiny_config


def pytest_configure(config):
    """All but `-m gpu` is a suite for CPUs, on any machine: ranks share no GPU, and what is forked cannot use one."""
    if not sees_devices(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def sees_devices(config) -> bool:
    return config.getoption("markexpr") == "gpu"


def pytest_collection_modifyitems(config, items):
    """Tests of a GPU are skipped where there is none. Those of data beside the checkout are left out where it is not: they are no part
    of a clone."""
    if not sees_devices(config) or not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_DEVICE))
    if SHARED.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("shared")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_report_header(config) -> list[str]:
    lines = [] if SHARED.is_dir() else [f"no {SHARED.name}/ beside the checkout: tests of real data are left out"]
    if sees_devices(config):
        seen = torch.cuda.get_device_name() if torch.cuda.is_available() else "none, so all of these tests are skipped"
        lines.append(f"CUDA device: {seen}")
    return lines


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_demo_world(folder, 0, WorldSize(shapes=48, pairs=32, clips=24, clip_captions=6, sentences=48, evaluation=16))
    return folder


@pytest.fixture
def config(world, tmp_path) -> Path:
    return tiny_config(world, tmp_path)
