"""Four ranks in every arrangement equal one process, and a checkpoint of any layout goes on in any other.

A few arrangements run with the suite; all of them with `make parity`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from tests.helpers.distributed import run_ranks
from tests.helpers.parity import Job, logical_weights, merged_losses, run_job
from tests.parallel.test_parity import assert_equal_runs, reference

FOUR = {
    "data": {},
    "tensor 2": {"tensor": 2},
    "tensor 4": {"tensor": 4},
    "expert 2": {"expert": 2},
    "expert 4": {"expert": 4},
}
FOUR["tensor 2, expert 2"] = {"tensor": 2, "expert": 2}
ROUTERS = ("attribute", "token", "limoe")
TASKS = ("caption", "text", "retrieval", "image")
QUICK = {("tensor 2, expert 2", "attribute", 2), ("expert 4", "limoe", 1), ("tensor 2, expert 2", "token", 1)}


def marked(*values):
    return pytest.param(*values, marks=() if values in QUICK else pytest.mark.parity)


def heads_of(layout: dict) -> dict:
    """Four tensor ranks need four heads."""
    return {"heads": 4} if layout.get("tensor") == 4 else {}


@pytest.mark.parametrize(
    ("layout", "router", "stage"), [marked(*point) for point in itertools.product(FOUR, ROUTERS, (1, 2))]
)
def test_four_ranks_equal_one_process(layout, router, stage):
    """Three gradient steps with four tasks at a time."""
    job = Job(router=router, stage=stage, tasks=TASKS, sgd=True, **heads_of(FOUR[layout]))
    got = run_ranks(4, run_job, dataclasses.replace(job, **FOUR[layout]))
    assert_equal_runs(reference(job), got, rtol=5e-5)


@pytest.mark.parity
@pytest.mark.parametrize("layout", FOUR)
def test_adam_on_four_ranks_equals_one_process(layout):
    job = Job(tasks=TASKS, **heads_of(FOUR[layout]))
    got = run_ranks(4, run_job, dataclasses.replace(job, **FOUR[layout]))
    assert_equal_runs(reference(job), got, rtol=2e-3)


LAYOUTS = {
    "one": (1, {}),
    "data 2": (2, {"stage": 2}),
    "tensor 2": (2, {"tensor": 2}),
    "expert 2": (2, {"expert": 2}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2, "stage": 2}),
}
QUICK_MOVES = {("tensor 2, expert 2", "one"), ("expert 2", "tensor 2"), ("one", "tensor 2, expert 2")}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*move, marks=() if move in QUICK_MOVES else pytest.mark.parity)
        for move in itertools.permutations(LAYOUTS, 2)
    ],
)
def test_save_on_one_layout_and_go_on_with_another(tmp_path, first, second):
    """Weights and moments are the saved ones bit for bit; the next losses are those of the uninterrupted run."""
    job = Job(steps=6, tasks=TASKS, save_to=str(tmp_path), save_at=3)
    ranks, layout = LAYOUTS[first]
    saved = run_ranks(ranks, run_job, dataclasses.replace(job, steps=3, **layout))
    ranks, layout = LAYOUTS[second]
    restored = run_ranks(ranks, run_job, dataclasses.replace(job, steps=3, **layout))
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        left, right = logical_weights(saved, kind), logical_weights(restored, kind)
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=f"{kind} of {name}")
    after = merged_losses(run_ranks(ranks, run_job, dataclasses.replace(job, **layout)))
    whole = merged_losses(reference(dataclasses.replace(job, save_to="", save_at=0)))
    assert after.keys() == {key for key in whole if key[0] >= 3}
    for key, value in after.items():
        # Adam magnifies rounding in its first steps, most where second moments are tiny.
        assert value == pytest.approx(whole[key], rel=1e-3), key
