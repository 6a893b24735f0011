"""The learning rate by hand, and the checks of the options."""

from __future__ import annotations

import math

import pytest

from parallel.config import OptimizerConfig, ParallelConfig

# Three steps of warm-up rise by quarters of the peak; then a cosine over the other eight of eleven steps.
RECIPE = OptimizerConfig(lr=0.8, min_lr=0.2, warmup_steps=3)
STEPS = 11


def test_warm_up_rises_by_equal_parts_and_does_not_reach_the_peak():
    assert [RECIPE.learning_rate(step, STEPS) for step in range(3)] == pytest.approx([0.2, 0.4, 0.6])


def test_the_first_step_after_warm_up_has_the_peak():
    assert RECIPE.learning_rate(3, STEPS) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (5, 0.2 + 0.3 * (1 + math.sqrt(0.5))),  # a quarter of the way: cos(pi / 4)
        (7, 0.5),  # half-way: the mean of 0.8 and 0.2
        (9, 0.2 + 0.3 * (1 - math.sqrt(0.5))),
        (11, 0.2),  # the end
        (50, 0.2),  # beyond the end it stays there
    ],
)
def test_a_cosine_leads_to_the_smallest_rate(step, expected):
    assert RECIPE.learning_rate(step, STEPS) == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak():
    recipe = OptimizerConfig(lr=0.8, min_lr=0.0, warmup_steps=0)
    assert [recipe.learning_rate(step, 4) for step in (0, 2, 4)] == pytest.approx([0.8, 0.4, 0.0])


def test_a_run_that_is_all_warm_up_has_a_rate_at_its_end():
    assert OptimizerConfig(lr=0.8, warmup_steps=4).learning_rate(4, 4) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"lr": 1e-3, "min_lr": 2e-3}, {"min_lr": -1e-9}, {"warmup_steps": -1}, {"weight_decay": -0.1},
     {"clip": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": 0.0}],
    ids=str,
)  # fmt: skip
def test_impossible_optimizers_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OptimizerConfig(**options)


def test_borders_of_the_optimizer_are_allowed():
    OptimizerConfig(lr=1e-3, min_lr=1e-3, warmup_steps=0, weight_decay=0.0, clip=0.0, betas=(0.0, 0.0))
    OptimizerConfig(min_lr=0.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"tensor": 0}, "tensor=0"), ({"expert": 0}, "expert=0"), ({"stall_s": -1.0}, "stall_s=-1"),
     ({"stall_s": 60.0, "timeout_s": 60.0}, "must be below timeout_s")],
)  # fmt: skip
def test_impossible_layouts_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        ParallelConfig(**options)


def test_borders_of_the_layout_are_allowed():
    ParallelConfig(stall_s=0.0)
    ParallelConfig(stall_s=59.0, timeout_s=60.0)
