"""What a run folder says of where a run stands."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parallel.checkpoints import CheckpointError
from run_folder import position, saved_state


def source(name: str, *sizes: int) -> Any:
    return SimpleNamespace(name=name, order=SimpleNamespace(sizes=np.array(sizes)))


TWO_SOURCES = [source("a", 5, 5), source("b", 9)]


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


def test_a_data_set_that_has_grown_is_named():
    """The order of its samples is another one, so a position says nothing."""
    engine: Any = SimpleNamespace(optimizer_step=6, loss_scale=1.0)
    saved = checkpoint(json.loads(json.dumps(saved_state((3, 4), TWO_SOURCES, engine))))
    assert position(saved, TWO_SOURCES) == (7, (3, 4))
    with pytest.raises(CheckpointError, match="task b hold other numbers"):
        position(saved, [TWO_SOURCES[0], source("b", 9, 1)])
