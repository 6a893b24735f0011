"""Two ranks equal one process: losses, norms, weights and moments by global name, for every axis and both ZeRO stages.

The two slots of a step hold different tasks, so these runs also show that ranks with different tasks do not hang and that
together they compute the one-process mixture.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from tests.helpers.batches import BATCHES
from tests.helpers.distributed import run_ranks
from tests.helpers.parity import Job, logical_weights, merged_losses, run_job

LAYOUTS = {"data": {}, "expert": {"expert": 2}, "tensor": {"tensor": 2}}


@functools.cache
def reference(job: Job) -> list[dict]:
    return run_ranks(1, run_job, job)


def assert_equal_runs(expected: list[dict], got: list[dict], rtol: float = 2e-5) -> None:
    a, b = merged_losses(expected), merged_losses(got)
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[k] for k in sorted(a)], [b[k] for k in sorted(a)], rtol=rtol)
    for result in got:
        np.testing.assert_allclose(result["norms"], expected[0]["norms"], rtol=rtol)
    for kind in expected[0]["fragments"][0][3].keys() - {"step"}:
        left, right = logical_weights(expected, kind), logical_weights(got, kind)
        assert left.keys() == right.keys()
        for name in left:
            scale = np.abs(left[name]).max() + 1e-6
            np.testing.assert_allclose(right[name], left[name], atol=rtol * scale, rtol=0, err_msg=f"{kind} of {name}")


@pytest.mark.parametrize("router", ["attribute", "task", "token", "context", "limoe"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_steps_equal_one_process(layout, router):
    """Three SGD steps: the update is the gradient, so every wrong factor shows."""
    job = Job(router=router, sgd=True)
    assert_equal_runs(reference(job), run_ranks(2, run_job, dataclasses.replace(job, **LAYOUTS[layout])))


@pytest.mark.parametrize("layout", ["data", "expert"])
def test_adam_steps_equal_one_process_under_zero_2(layout):
    job = Job(stage=2)
    got = run_ranks(2, run_job, dataclasses.replace(job, **LAYOUTS[layout]))
    # Adam divides by the root of tiny second moments in its first steps, which magnifies rounding.
    assert_equal_runs(reference(job), got, rtol=2e-3)


@pytest.mark.parametrize("router", ["modality", "token", "limoe"])
def test_every_pair_of_tasks_on_two_ranks(router):
    """All ordered pairs in one run, a step each: no hang, and every loss is the one process's."""
    pairs = tuple(itertools.permutations(BATCHES, 2))
    job = Job(expert=2, steps=1, tasks=tuple(task for pair in pairs for task in pair), router=router)
    alone = dataclasses.replace(job, expert=1)
    assert_equal_runs(reference(alone), run_ranks(2, run_job, job), rtol=2e-3)


def test_a_gradient_that_is_not_finite_skips_the_update_on_all_ranks():
    """The broken batch is on one rank alone; both must keep their weights, and go on with the next step."""
    job = Job(expert=2, steps=1, sgd=True)
    before = logical_weights(run_ranks(2, run_job, dataclasses.replace(job, steps=0)))
    broken = run_ranks(2, run_job, dataclasses.replace(job, broken_step=0))
    assert all(not np.isfinite(result["norms"][0]) for result in broken)
    after = logical_weights(broken)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    going_on = run_ranks(2, run_job, dataclasses.replace(job, steps=2, broken_step=0))
    assert all(np.isfinite(result["norms"][1]) for result in going_on)
    assert any(not np.array_equal(before[name], weight) for name, weight in logical_weights(going_on).items())


def test_a_rank_that_fails_is_reported():
    with pytest.raises(AssertionError, match=r"rank 1 of 2 failed:(.|\n)*told to fail"):
        run_ranks(2, fail_on_rank_1)


def fail_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise RuntimeError("told to fail")
