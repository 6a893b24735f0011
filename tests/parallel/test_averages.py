"""Moving averages of weights: by hand, on any layout, through checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parallel.checkpoints import load_weights, open_checkpoint
from parallel.optimizer_state import average_weights, swap_averages
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.parity import ParityRun, logical_weights, run_job
from tests.parallel.test_parity import assert_close, assert_equal_runs


def test_by_hand():
    """At updates 1, 2 and 3 with decay 0.3: the first value; then shares of 1 - 3 / 12 and, where 4 / 13 is more than 0.3, of 0.7."""
    weight, held = torch.tensor([4.0]), {}
    state: Any = SimpleNamespace(masters=lambda: [(weight, held)], finish_restore=lambda: None)
    average_weights(state, 0.3, 1)
    assert held["average"].tolist() == [4.0]
    weight.fill_(8.0)
    average_weights(state, 0.3, 2)
    assert held["average"].item() == pytest.approx(4 + 0.75 * 4)
    average_weights(state, 0.3, 3)
    assert held["average"].item() == pytest.approx(7 + 0.7 * 1)
    swap_averages(state)
    assert weight.item() == pytest.approx(7.7) and held["average"].item() == 8.0


@pytest.mark.parametrize("job", [{"expert": 2}, {"tensor": 2, "engine": "zero0"}], ids=str)
def test_two_ranks_average_as_one(job):
    common = {"ema": 0.5, "adam_eps": 1e-3}
    expected, got = run_ranks(1, run_job, ParityRun(**common)), run_ranks(2, run_job, ParityRun(**common, **job))
    assert_equal_runs(expected, got)
    average = logical_weights(expected, "average")
    for name, value in expected[0]["averaged"].items():
        assert np.array_equal(value, average[name]), name


def test_a_second_half_averages_on_and_reading_takes_averages(tmp_path):
    whole = run_ranks(1, run_job, ParityRun(steps=4, ema=0.9))
    half = ParityRun(steps=2, ema=0.9, save_to=str(tmp_path), save_at=2)
    run_ranks(1, run_job, half)
    rest = run_ranks(1, run_job, ParityRun(steps=4, ema=0.9, save_to=str(tmp_path), save_at=4))
    assert_close(logical_weights(whole, "average"), logical_weights(rest, "average"), 0.0, "average")

    checkpoint = open_checkpoint(tmp_path / "step_00000004")
    module = make(tiny(initial_scale=1.0))
    for kind, expected in (("final", "average"), ("weight", "weight")):
        load_weights(checkpoint, module, kind=kind)
        stored = logical_weights(rest, expected)
        assert all(np.array_equal(p.detach().numpy(), stored[name]) for name, p in module.named_parameters())
    without = run_ranks(1, run_job, ParityRun(steps=5, save_to=str(tmp_path)))  # the average is left behind
    assert "average" not in without[0]["fragments"][0][3]


def test_averages_may_begin_later(tmp_path):
    run_ranks(1, run_job, ParityRun(steps=1, save_to=str(tmp_path), save_at=1))
    (result,) = run_ranks(1, run_job, ParityRun(steps=2, ema=0.9, save_to=str(tmp_path)))
    assert_close(logical_weights([result], "average"), logical_weights([result], "weight"), 0.0, "average")
