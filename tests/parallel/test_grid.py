"""Two, four and eight ranks in every arrangement equal one process, and a checkpoint of any layout goes on in any other.

A few arrangements run with the suite; all of them with `make parity`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from tests.helpers.distributed import run_ranks
from tests.helpers.parity import ParityRun, logical_weights, merged_losses, run_job
from tests.parallel.test_parity import assert_equal_runs, reference

GRID = {  # ranks, layout: data = expert x expert_data
    "data 4": (4, {}),
    "tensor 2": (2, {"tensor": 2}),
    "tensor 4": (4, {"tensor": 4, "heads": 4}),
    "expert 4": (4, {"expert": 4}),
    "data 2, tensor 2": (4, {"tensor": 2}),
    "data 2, expert 2": (4, {"expert": 2}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2}),
    "data 2, tensor 2, expert 2": (8, {"tensor": 2, "expert": 2}),
    "tensor 4, expert 2": (8, {"tensor": 4, "expert": 2, "heads": 4}),
}
"""Two ranks over data, tensor or expert alone: test_parity.py."""
ENGINES = ("zero0", "zero1", "zero2")
ROUTERS = ("attribute", "token", "limoe")
TASKS = ("caption", "text", "retrieval", "image")
QUICK = {
    ("tensor 2, expert 2", "attribute", "zero2"),
    ("expert 4", "limoe", "zero1"),
    ("tensor 2, expert 2", "token", "zero0"),
    ("data 2, expert 2", "attribute", "zero1"),
}


def marked(*values):
    return pytest.param(*values, marks=() if values in QUICK else pytest.mark.parity)


def alone(job: ParityRun) -> list[dict]:
    """The same job in one process."""
    return reference(dataclasses.replace(job, tensor=1, expert=1, engine="zero1"))


@pytest.mark.parametrize(
    ("layout", "router", "engine"), [marked(*point) for point in itertools.product(GRID, ROUTERS, ENGINES)]
)
def test_gradient_steps_equal_one_process(layout, router, engine):
    """Three plain gradient steps with four tasks at a time: the update is the gradient, so every wrong factor shows."""
    ranks, options = GRID[layout]
    job = ParityRun(router=router, engine=engine, tasks=TASKS, micro_batches=4, sgd=True, **options)
    assert_equal_runs(alone(job), run_ranks(ranks, run_job, job))


@pytest.mark.parity
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("router", ["attribute", "token"])
@pytest.mark.parametrize("layout", GRID)
def test_adam_steps_equal_one_process(layout, router, engine):
    """With clipping and weight decay."""
    ranks, options = GRID[layout]
    job = ParityRun(router=router, engine=engine, tasks=TASKS, micro_batches=4, adam_eps=1e-2, lr=1e-3, **options)
    assert_equal_runs(alone(job), run_ranks(ranks, run_job, job))


LAYOUTS = {
    "one": (1, {}),
    "data 2, zero 0": (2, {"engine": "zero0"}),
    "data 2": (2, {"engine": "zero2"}),
    "tensor 2": (2, {"tensor": 2}),
    "expert 2": (2, {"expert": 2}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2, "engine": "zero2"}),
}
LARGE = {
    "expert 4": (4, {"expert": 4, "engine": "zero2"}),
    "tensor 4, expert 2": (8, {"tensor": 4, "expert": 2}),
}
MOVES = [
    *itertools.permutations(LAYOUTS, 2),
    *((a, b) for a, b in itertools.permutations(("one", "expert 2", *LARGE), 2) if {a, b} & LARGE.keys()),
]
QUICK_MOVES = {("tensor 2, expert 2", "one"), ("expert 2", "tensor 2"), ("one", "tensor 2, expert 2")}


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(*move, marks=() if move in QUICK_MOVES else pytest.mark.parity) for move in MOVES],
)
def test_save_on_one_layout_and_go_on_with_another(tmp_path, first, second):
    """Weights and moments are the saved ones bit for bit; the next losses are those of the uninterrupted run."""
    job = ParityRun(
        steps=6, tasks=TASKS, micro_batches=4, heads=4, adam_eps=1e-2, lr=1e-3, save_to=str(tmp_path), save_at=3
    )
    ranks, layout = (LAYOUTS | LARGE)[first]
    saved = run_ranks(ranks, run_job, dataclasses.replace(job, steps=3, **layout))
    ranks, layout = (LAYOUTS | LARGE)[second]
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
        assert value == pytest.approx(whole[key], rel=1e-5), key
