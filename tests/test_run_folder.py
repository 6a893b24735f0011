"""What a run folder says of where a run stands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parallel.checkpoints import CheckpointError
from run_folder import position

TWO_SOURCES: Any = [None, None]


def checkpoint(state: dict[str, Any]) -> Any:
    return SimpleNamespace(folder=Path("runs/a/checkpoints/step_00000007"), step=7, state=state)


def test_a_run_without_a_checkpoint_is_at_its_beginning():
    assert position(None, TWO_SOURCES) == (0, (0, 0))


def test_a_checkpoint_tells_steps_and_samples():
    assert position(checkpoint({"consumed": [3, 4], "optimizer_step": 6}), TWO_SOURCES) == (7, (3, 4))


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({}, "optimizer_step is None"),
        ({"optimizer_step": 6}, "consumed is None"),
        ({"optimizer_step": "6", "consumed": [3, 4]}, "optimizer_step is '6'"),
        ({"optimizer_step": 6, "consumed": [3]}, r"consumed is \[3\], not 2 number"),
        ({"optimizer_step": 6, "consumed": [3, -1]}, "consumed is"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(state, name):
    with pytest.raises(CheckpointError, match=f"step_00000007: state.{name}"):
        position(checkpoint(state), TWO_SOURCES)
