"""Two ranks equal one process: losses, norms, weights and moments by global name, for every axis and both ZeRO stages.

The two micro-batches of a step hold different tasks, so these runs also show that ranks with different tasks do not hang and that
together they compute the one-process mixture.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from parallel.precision import FIRST_SCALE
from tests.helpers.batches import BATCHES
from tests.helpers.distributed import run_ranks
from tests.helpers.parity import ParityRun, logical_gradients, logical_weights, merged_losses, run_job

LAYOUTS = {"data": {}, "expert": {"expert": 2}, "tensor": {"tensor": 2}}


@functools.cache
def reference(job: ParityRun) -> list[dict]:
    return run_ranks(1, run_job, job)


def assert_equal_runs(expected: list[dict], got: list[dict], rtol: float = 1e-5) -> None:
    """Losses, norms, every gradient of every step, and at the end all weights and moments, by global name."""
    a, b = merged_losses(expected), merged_losses(got)
    assert a.keys() == b.keys()
    np.testing.assert_allclose([b[k] for k in sorted(a)], [a[k] for k in sorted(a)], rtol=rtol)
    for result in got:
        np.testing.assert_allclose(result["norms"], expected[0]["norms"], rtol=rtol, atol=1e-6)
        assert result["norms"] == got[0]["norms"], "ranks must see the same number"
    for step in range(len(expected[0]["gradients"])):
        assert_close(logical_gradients(expected, step), logical_gradients(got, step), rtol, f"gradient of step {step}")
    for kind in expected[0]["fragments"][0][3]:
        assert_close(logical_weights(expected, kind), logical_weights(got, kind), rtol, kind)


def assert_close(expected: dict[str, np.ndarray], got: dict[str, np.ndarray], rtol: float, what: str) -> None:
    """The norm of the difference against the norm of each tensor, or against a thousandth of the norm of all (a hundredth for
    single numbers) where that is more: sums that cancel leave nothing but rounding."""
    assert expected.keys() == got.keys()
    whole = np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in expected.values()))
    for name, value in expected.items():
        size = max(np.linalg.norm(value.astype(np.float64)), (1e-3 if value.size > 1 else 1e-2) * whole)
        error = np.linalg.norm(got[name].astype(np.float64) - value)
        assert error <= rtol * size + 1e-7, f"{what}: {name} is off by {error / size:.1e} of its norm"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "router", ["attribute", "token", *(pytest.param(r, marks=pytest.mark.parity) for r in ("task", "context", "limoe"))]
)
def test_gradient_steps_equal_one_process(layout, router):
    """Three SGD steps: the update is the gradient, so every wrong factor shows."""
    job = ParityRun(router=router, sgd=True)
    assert_equal_runs(reference(job), run_ranks(2, run_job, dataclasses.replace(job, **LAYOUTS[layout])))


@pytest.mark.parametrize(
    ("router", "options", "checkpointing"),
    [
        ("token", {"expert": 2}, "block"),
        ("limoe", {"expert": 2}, "none"),
        *(
            pytest.param(router, options, checkpointing, marks=pytest.mark.parity)
            for router, options in (("limoe", {"expert": 2}), ("token", {"tensor": 2, "expert": 2, "sequence": True}))
            for checkpointing in ("none", "selective", "block")
            if options != {"expert": 2} or checkpointing != "none"
        ),
    ],
)
def test_tokens_in_parts_equal_one_process(router, options, checkpointing):
    """Tokens travel in three parts, on ranks with different tasks."""
    job = ParityRun(router=router, sgd=True, model=(("activation_checkpointing", checkpointing),))
    parts = dataclasses.replace(job, experts=(("exchange_parts", 3),), **options)
    ranks = 2 * options.get("tensor", 1)
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, parts))


@pytest.mark.parametrize(
    "engine", ["zero0", "zero1", *(pytest.param(name, marks=pytest.mark.parity) for name in ("zero2", "zero2_offload"))]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adam_steps_equal_one_process(layout, engine):
    """With weight decay and clipping."""
    job = ParityRun(adam_eps=1e-2, lr=1e-3)
    got = run_ranks(2, run_job, dataclasses.replace(job, engine=engine, **LAYOUTS[layout]))
    assert_equal_runs(reference(job), got)


@pytest.mark.parametrize(
    ("router", "experts", "options", "checkpointing"),
    [
        ("limoe", {}, {"expert": 2}, "block"),
        ("token", {"capacity_factor": 1.0, "random_second": True}, {"expert": 2}, "none"),
        *(
            pytest.param(*point, marks=pytest.mark.parity)
            for point in (
                ("limoe", {"group_size": 1}, {"expert": 2}, "selective"),
                ("limoe", {}, {"expert": 4}, "none"),
                ("token", {"capacity_factor": 0.5}, {"tensor": 2, "expert": 2, "sequence": True}, "block"),
            )
        ),
    ],
)
def test_tokens_in_slots_equal_one_process(router, experts, options, checkpointing):
    """All slots travel, filled or not, on ranks with different tasks, whose numbers of slots differ."""
    fixed = {"engine": "zero1", "micro_batches": max(2, options["expert"])}
    model = (("activation_checkpointing", checkpointing),)
    job = ParityRun(router=router, sgd=True, model=model, experts=tuple(experts.items()), **fixed)
    in_slots = dataclasses.replace(job, experts=(*experts.items(), ("exchange", "slots")), **options)
    ranks = options["expert"] * options.get("tensor", 1)
    assert_equal_runs(reference(job), run_ranks(ranks, run_job, in_slots))


PAIRS = tuple(task for pair in itertools.permutations(BATCHES, 2) for task in pair)


@pytest.mark.parametrize(
    "router", ["token", *(pytest.param(r, marks=pytest.mark.parity) for r in ("modality", "limoe"))]
)
def test_every_pair_of_tasks_on_two_ranks(router):
    """All ordered pairs, a step each: every loss and gradient is the one process's."""
    job = ParityRun(steps=len(PAIRS) // 2, tasks=PAIRS, router=router, sgd=True, lr=1e-3)
    assert_equal_runs(reference(job), run_ranks(2, run_job, dataclasses.replace(job, expert=2)))


@pytest.mark.parity
@pytest.mark.parametrize("router", ["attribute", "token", "limoe"])
def test_every_pair_of_tasks_for_twenty_steps(router):
    """No hang, and copies stay copies; one of the tasks has no text, another no picture, as inputs."""
    steps = 20 * len(PAIRS) // 2
    results = run_ranks(
        2, run_job, ParityRun(expert=2, steps=steps, tasks=PAIRS, router=router, lr=1e-3), timeout_s=300
    )
    losses = merged_losses(results)
    assert len(losses) == 2 * steps and np.isfinite(list(losses.values())).all()
    logical_weights(results)


@pytest.mark.parametrize("path", ["attribute", "token"])
def test_all_tokens_to_one_expert(path):
    """The other ranks' experts get nothing, step after step; their gradient is zero, not missing."""
    job = ParityRun(router=path, forced_expert=3, sgd=True)
    got = run_ranks(2, run_job, dataclasses.replace(job, expert=2))
    assert_equal_runs(reference(job), got)
    gradient = logical_gradients(got, 0)["tower.encoder.blocks.0.ffn.up.bank.weight"]
    assert [bool(np.any(expert)) for expert in gradient] == [False, False, False, True]


@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2"])
def test_locked_experts_on_two_ranks(engine):
    """Each rank holds half of the experts, and the optimizer none."""
    job = ParityRun(frozen=("*bank*",), sgd=True)
    got = run_ranks(2, run_job, dataclasses.replace(job, expert=2, engine=engine))
    assert_equal_runs(reference(job), got)


@pytest.mark.parametrize(
    "engine", ["zero1", *(pytest.param(name, marks=pytest.mark.parity) for name in ("zero0", "zero2"))]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_follows_fp32(layout, engine):
    """Weights are fp32; losses stay within the rounding of the layers."""
    job = ParityRun(adam_eps=1e-2, lr=1e-3)
    got = run_ranks(2, run_job, dataclasses.replace(job, engine=engine, precision="bf16", **LAYOUTS[layout]))
    expected, losses = merged_losses(reference(job)), merged_losses(got)
    for key, loss in losses.items():
        assert loss == pytest.approx(expected[key], rel=2e-2), key
    after, before = logical_weights(got), logical_weights(reference(dataclasses.replace(job, steps=0)))
    assert all(value.dtype == np.float32 for value in after.values())
    moved = [name for name in after if not np.array_equal(after[name], before[name])]
    assert len(moved) > 0.9 * len(after), "updates were not applied"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp16_follows_fp32_and_halves_its_scale_where_a_gradient_overflows(layout):
    """All ranks skip the broken step, halve the scale, and train on; the scale is in no norm and no update."""
    job = ParityRun(adam_eps=1e-2, lr=1e-3, broken_step=1)
    got = run_ranks(2, run_job, dataclasses.replace(job, precision="fp16", **LAYOUTS[layout]))
    expected = reference(job)
    losses = merged_losses(got)
    for key, loss in merged_losses(expected).items():
        assert np.isnan(loss) or losses[key] == pytest.approx(loss, rel=2e-2), key
    assert {result["loss_scale"] for result in got} == {FIRST_SCALE / 2}
    for step in (0, 2):
        assert got[0]["norms"][step] == pytest.approx(expected[0]["norms"][step], rel=0.1)


def test_a_gradient_that_is_not_finite_skips_the_update_on_all_ranks():
    """The broken batch is on one rank alone; both must keep their weights, and go on with the next step."""
    job = ParityRun(expert=2, steps=1, sgd=True)
    before = logical_weights(run_ranks(2, run_job, dataclasses.replace(job, steps=0)))
    broken = run_ranks(2, run_job, dataclasses.replace(job, broken_step=0))
    assert all(not np.isfinite(result["norms"][0][0]) for result in broken)
    after = logical_weights(broken)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    going_on = run_ranks(2, run_job, dataclasses.replace(job, steps=2, broken_step=0))
    assert all(np.isfinite(result["norms"][1]).all() for result in going_on)
    assert any(not np.array_equal(before[name], weight) for name, weight in logical_weights(going_on).items())


def test_a_rank_that_fails_is_reported():
    with pytest.raises(AssertionError, match=r"rank 1 of 2 failed:(.|\n)*told to fail"):
        run_ranks(2, fail_on_rank_1)


def fail_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise RuntimeError("told to fail")
