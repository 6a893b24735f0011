"""Parameters are counted by family, trained and frozen."""

from __future__ import annotations

from dataclasses import replace

from model.config import LoraConfig, PromptConfig
from model.tuning.trained import choose_trained
from run.parameters import told_parameters
from tests.helpers.models import make, tiny


def test_where_all_is_trained_one_line_is_enough():
    network = make(tiny("token"))
    total = sum(parameter.numel() for parameter in network.parameters())
    assert told_parameters(network) == [f"{total:,}, all trained"]


def test_families_of_prompt_tuning_by_hand():
    """Two blocks of width 16: two prompts each and the bias of <SPE>; two norms a block, one of what goes in and one of what comes out,
    each of a weight and a bias; a head of three classes and its weight."""
    config = tiny("attribute", prompts=PromptConfig(length=2), head_classes=3)
    network = make(config)
    choose_trained(network, "prompts", ())
    first, trained, frozen = told_parameters(network)
    width = config.width
    assert f"prompts {2 * 2 * width + width:,}" in trained and f"norms {6 * 2 * width:,}" in trained
    assert f"linear head {3 * config.space_width + 3 + 1:,}" in trained
    assert first.endswith(f"{5 * width + 12 * width + 3 * config.space_width + 4:,} trained")
    assert frozen.startswith("frozen: experts ") and "attention" in frozen and "others" not in frozen


def test_low_rank_updates_and_experts_have_families_of_their_own():
    config = replace(tiny("token"), lora=LoraConfig(rank=2, alpha=2.0))
    network = make(config)
    choose_trained(network, "lora", ())
    _, trained, frozen = told_parameters(network)
    size = sum(p.numel() for name, p in network.named_parameters() if ".lora." in name)
    assert trained == f"trained: low-rank updates {size:,}"
    assert all(f"{family} " in frozen for family in ("experts", "routers", "embeddings", "norms", "scales"))
