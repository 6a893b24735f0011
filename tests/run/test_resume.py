"""Where a run starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.stream.order import EpochOrder
from data.stream.source import OpenData
from parallel.checkpoints import CheckpointError
from run.resume import Resume, _position


def opened(**sizes: tuple[int, ...]) -> Any:
    sources = [SimpleNamespace(name=name, order=EpochOrder(shards, 0, 8)) for name, shards in sizes.items()]
    return OpenData(None, sources)  # type: ignore[arg-type]


TWO = opened(a=(5, 5), b=(9,))


def checkpoint(state: dict[str, Any]) -> Any:
    return SimpleNamespace(folder=Path("runs/a/checkpoints/step_00000007"), step=7, state=state)


def test_a_run_without_a_checkpoint_is_at_its_beginning():
    assert _position(None, TWO) == (0, (0, 0))


def test_a_checkpoint_tells_steps_and_samples():
    assert _position(checkpoint({"consumed": [3, 4], "optimizer_step": 6}), TWO) == (7, (3, 4))


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
        _position(checkpoint(state), TWO)


def test_a_data_set_that_has_grown_is_named():
    """The order of its samples is another one, so a position says nothing."""
    engine: Any = SimpleNamespace(optimizer_step=6, loss_scale=1.0)
    resume = Resume(None, TWO, None, 0, (0, 0), ())  # type: ignore[arg-type]
    saved = checkpoint(json.loads(json.dumps(resume.state((3, 4), engine))))
    assert _position(saved, TWO) == (7, (3, 4))
    with pytest.raises(CheckpointError, match="task b hold other numbers"):
        _position(saved, opened(a=(5, 5), b=(9, 1)))
