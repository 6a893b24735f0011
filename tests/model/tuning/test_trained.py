"""Locked parameters."""

from __future__ import annotations

import pytest

from model.config import LoraConfig, PromptConfig
from model.tuning.trained import TuningError, check_tune, choose_trained, freeze
from tests.helpers.models import make, tiny


def test_prompt_tuning_trains_its_parameters_alone():
    objective = make(tiny(prompts=PromptConfig(length=2, target_length=3), head_classes=4))
    choose_trained(objective, "prompts")
    tuned = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    block = [f"tower.encoder.blocks.{i}." for i in range(2)]
    norms = [f"{b}{norm}_norm.{kind}" for b in block for norm in ("attention", "ffn") for kind in ("weight", "bias")]
    norms += [f"tower.{norm}.{kind}" for norm in ("embedding.norm", "output_norm") for kind in ("weight", "bias")]
    prompts = [b + kind for b in block for kind in ("prompts", "target_prompts")]
    assert tuned == {*norms, *prompts, "tower.embedding.spe_bias", "head.weight", "head.bias", "similarity_weight"}


@pytest.mark.parametrize("tune", ["prompts", "lora", "head"])
def test_what_is_to_be_tuned_must_be_there(tune):
    with pytest.raises(ValueError, match=f"optimizer.tune={tune} needs model"):
        check_tune(tune, tiny())


def test_a_head_or_updates_are_trained_alone():
    objective = make(tiny(lora=LoraConfig(rank=2, targets=("qkv",)), head_classes=3))
    head = {"head.weight", "head.bias", "similarity_weight"}
    choose_trained(objective, "head")
    assert {name for name, p in objective.named_parameters() if p.requires_grad} == head
    choose_trained(objective, "lora")
    updates = {
        f"tower.encoder.blocks.{i}.attention.qkv.{part}" for i, part in ((0, "bank.lora.up"), (0, "bank.lora.down"))
    } | {f"tower.encoder.blocks.1.attention.qkv.lora.{part}" for part in ("up", "down")}
    assert {name for name, p in objective.named_parameters() if p.requires_grad} == head | updates


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


def test_nothing_to_train_is_an_error():
    with pytest.raises(TuningError, match=r"optimizer.tune=all and optimizer.frozen=\['\*'\] leave nothing to train"):
        choose_trained(make(), "all", ("*",))


def test_scales_and_biases_that_are_new_are_trained_besides():
    """Those of a kind of task, or a loss, that the loaded weights have not learned."""
    objective = make(tiny(head_classes=3, temperatures=("image", "text", "retrieval"), logit_biases=("retrieval",)))
    new = ("log_scales.text", "logit_biases.retrieval", "tower.embedding.text_type")
    choose_trained(objective, "head", new=new)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias", "similarity_weight", *new[:2]}
    choose_trained(objective, "head", ("logit_biases.*",), new)
    assert not objective.logit_biases["retrieval"].requires_grad and objective.log_scales["text"].requires_grad


def test_new_prompts_that_would_stay_random_are_refused():
    objective = make(tiny(prompts=PromptConfig(length=2), head_classes=3))
    new = ("tower.encoder.blocks.0.prompts",)
    choose_trained(objective, "prompts", new=new)
    choose_trained(objective, "head")  # they were loaded
    said = r"blocks.0.prompts begins at random, and optimizer.tune=head with optimizer.frozen=\[\] does not train it: leave model.prompts"
    with pytest.raises(TuningError, match=said):
        choose_trained(objective, "head", new=new)
