"""Locked parameters."""

from __future__ import annotations

import dataclasses

import pytest

from model.config import PromptConfig
from model.objective import Objective
from model.tuning import freeze, tune_prompts
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.batches import VOCABULARY_SIZE
from tests.helpers.parity import tiny


def make(prompts: PromptConfig | None = None) -> Objective:
    config = dataclasses.replace(tiny("attribute"), prompts=prompts)
    return Objective(config, VOCABULARY_SIZE, Mesh(), load_kernels("torch"))


def test_prompt_tuning_trains_its_parameters_alone():
    objective = make(PromptConfig(length=2, target_length=3, classes=4))
    tune_prompts(objective)
    tuned = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    block = [f"tower.encoder.blocks.{i}." for i in range(2)]
    norms = [f"{b}{norm}_norm.{kind}" for b in block for norm in ("attention", "ffn") for kind in ("weight", "bias")]
    norms += [f"tower.{norm}.{kind}" for norm in ("embedding.norm", "output_norm") for kind in ("weight", "bias")]
    prompts = [b + kind for b in block for kind in ("prompts", "target_prompts")]
    assert tuned == {*norms, *prompts, "tower.embedding.spe_bias", "head.weight", "head.bias", "similarity_weight"}
    with pytest.raises(ValueError, match="needs a model with prompts"):
        tune_prompts(make())


def test_patterns_lock_what_they_match():
    objective = make()
    count = freeze(objective, ("tower.embedding.*", "*.router.*"))
    locked = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    assert len(locked) == count
    assert all(".embedding." in name or ".router." in name for name in locked)
    assert "tower.embedding.tokens.weight" in locked
    assert freeze(make(), ()) == 0


def test_a_pattern_without_a_match_is_an_error():
    with pytest.raises(ValueError, match=r"optimizer.frozen='towers\.\*' matches no parameter; there are log_scales"):
        freeze(make(), ("towers.*",))
