"""Routing of published systems has their numbers (docs/papers.md 3.3, 3.5, 4.2, 7)."""

from __future__ import annotations

import pytest

from model.moe.presets import ROUTING

EXPECTED = {
    "uni_perceiver_moe": {"num_experts": 8, "top_k": 2, "placement": "odd", "noise": "vmoe", "renormalise": True},
    "uni_perceiver_moe_token": {"num_experts": 8, "top_k": 2, "capacity_factor": 3.0, "eval_capacity_factor": 4.0},
    "vmoe": {
        "top_k": 2, "renormalise": False, "group_size": 8, "capacity_factor": 1.05, "capacity_multiple": 4, "priority": "none",
        "same_start": True, "auxiliary": {"importance": 0.005, "load": 0.005},
    },
    "limoe": {
        "top_k": 1, "renormalise": False, "capacity_factor": 1.0, "priority": "max", "same_start": True,
        "auxiliary": {
            "importance": 0.005, "load": 0.005, "local_text": 0.04, "global_text": 0.04, "global_visual": 0.04,
            "experts_text": 2.0, "experts_visual": 5.0,
        },
    },
    "switch": {"top_k": 1, "renormalise": False, "capacity_factor": 1.25, "auxiliary": {"switch": 0.01}},
    "gshard": {"top_k": 2, "random_second": True, "capacity_factor": 1.0, "auxiliary": {"switch": 0.01}},
    "glam": {"top_k": 2, "capacity_factor": 1.0, "auxiliary": {"switch": 0.01}},
    "st_moe": {"top_k": 2, "placement": "every-4", "capacity_factor": 1.25, "auxiliary": {"switch": 0.01, "z": 0.001}},
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTING)
def test_a_preset_has_the_published_numbers(name):
    assert EXPECTED[name].items() <= ROUTING[name].items()


def test_thresholds_that_so_few_experts_cannot_reach_are_told():
    """LIMoE's threshold is the entropy of S equally used experts."""
    from model.moe.config import AuxiliaryConfig, ExpertConfig

    def told(**auxiliary: float) -> tuple[str, ...]:
        return ExpertConfig(router="token", num_experts=4, top_k=1, auxiliary=AuxiliaryConfig(**auxiliary)).unreachable

    assert told(global_text=1.0, global_visual=1.0, experts_text=2.0, experts_visual=4.0) == ()
    assert told(experts_visual=9.0) == ()  # a loss without a weight
    (line,) = told(global_visual=1.0, experts_visual=5.0)
    assert "experts_visual=5 is above num_experts=4" in line and "lower it to at most 4" in line
