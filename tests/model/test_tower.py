"""Options that must not change a result (chunks, recomputation), and towers, read-outs and projections that must."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.batch import Modality
from model.config import ModelConfig, TextTowerConfig
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE, masked_text, retrieval
from tests.helpers.models import make, tiny


def result(options: ModelConfig, batch, noise=None, weights=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and use of experts in one tensor, and gradients."""
    objective = make(options)
    for name, value in (weights or {}).items():
        objective.get_parameter(name).data.copy_(value)
    losses = objective(batch, noise)
    losses.total.backward()
    figures = torch.cat([losses.total.detach().view(1).double(), losses.use.packed().flatten().double()])
    return figures, {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def assert_equal(first, second, **tolerance) -> None:
    torch.testing.assert_close(first[0], second[0], **tolerance)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(
            gradient, second[1][name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("router", ["attribute", "token"])
@pytest.mark.parametrize("batch", [retrieval, masked_text], ids=["retrieval", "text"])
def test_chunks_give_the_gradient_of_the_whole_batch(batch, router, chunks):
    """BASIC: a contrastive batch larger than memory, without approximation."""
    whole = result(tiny(router), batch())
    assert_equal(result(tiny(router, chunks=chunks), batch()), whole, rtol=1e-4, atol=3e-5)


def test_more_chunks_than_rows_is_an_error():
    with pytest.raises(ValueError, match=r"model.chunks=9 is more than the \d rows"):
        make(tiny(chunks=9))(retrieval())


RECOMPUTED = {
    "dense": ("attribute", {"placement": "none"}),
    "merge": ("attribute", {}),
    "dispatch": ("token", {"capacity_factor": 1.0}),
    "dispatch, one expert": ("token", {"top_k": 1}),
    "context": ("context", {"pooling": "attention"}),
    "whole networks": ("limoe", {}),
}


@pytest.mark.parametrize(
    ("path", "task", "how"),
    [
        *((path, task, "block") for path in ("merge", "dispatch") for task in BATCHES),
        *((path, task, "selective") for path in RECOMPUTED for task in ("caption", "retrieval")),
    ],
)
def test_recomputation_changes_nothing(path, task, how):
    router, experts = RECOMPUTED[path]
    batch = BATCHES[task]()
    plain = result(tiny(router, experts, drop_path=0.2), batch, noise=3)
    again = result(tiny(router, experts, drop_path=0.2, activation_checkpointing=how), batch, noise=3)
    assert_equal(again, plain, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["block", "selective"])
def test_recomputation_keeps_decisions_of_tied_scores(how):
    experts = {"capacity_factor": 0.6, "noise": "none", "unit": "mlp", "top_k": 1, "placement": "all"}
    tied = {f"tower.encoder.blocks.{i}.ffn_path.router.gate.weight": torch.zeros(4, 16) for i in range(2)}
    plain = result(tiny("token", experts), retrieval(), weights=tied)
    again = result(tiny("token", experts, activation_checkpointing=how), retrieval(), weights=tied)
    assert_equal(again, plain, rtol=0, atol=0)


def test_recomputation_takes_the_decision_that_was_made(monkeypatch):
    """A device that sums in another order the second time must not send tokens elsewhere: here the gate's sums do differ."""
    from model.moe import router

    original, calls = router._logits, []

    def drifting(*call):
        calls.append(1)
        weighing, selection, logits, noisy = original(*call)
        again = float(len(calls) > 1)
        return again * weighing.flip(1) + (1 - again) * weighing, selection, logits, noisy

    experts = {"unit": "mlp", "top_k": 1, "placement": "last-1", "noise": "none"}
    objective = make(tiny("token", experts, activation_checkpointing="block", readout="mean"))
    with monkeypatch.context() as patch:
        patch.setattr(router, "_logits", drifting)
        loss = objective(retrieval()).total
        loss.backward()
    assert len(calls) == 2
    bank = objective.tower.encoder.blocks[1].ffn.experts.up.weight
    used = objective(retrieval()).use.taken_ME[0].sum(dim=0) > 0
    assert torch.equal(bank.grad.flatten(1).abs().sum(dim=1) > 0, used)


def test_text_tower_reads_text_and_the_other_reads_pictures():
    options = tiny(text_tower=TextTowerConfig(width=8, depth=1, heads=2, ffn=16))
    objective = make(options)
    assert objective.text_tower.encoder.blocks[0].attention.head_width == 4
    losses = objective(retrieval())
    losses.total.backward()
    assert losses.use.taken_ME.shape[0] == options.num_decisions == 4
    assert objective.tower.embedding.patches.weight.grad.any()
    assert objective.tower.embedding.tokens.weight.grad[: VOCABULARY_SIZE - 5].count_nonzero() == 0
    assert objective.text_tower.embedding.tokens.weight.grad.any()
    assert objective.text_tower.embedding.patches.weight.grad is None
    features, _ = objective.encode_candidates(retrieval().candidates)
    assert features.shape[1] == 16  # the compared space has the width of the first tower


def test_figures_of_experts_keep_their_places_where_a_tower_has_nothing_to_do():
    """Masked text is for the text tower alone, whose decisions stand after those of the other."""
    objective = make(tiny("token", {"placement": "all"}, text_tower=TextTowerConfig(width=8, depth=1, heads=2, ffn=16)))
    both, text = objective(retrieval()).use, objective(masked_text()).use
    assert text.asked_M.shape == both.asked_M.shape
    visual = 4
    assert (both.asked_M.sum(dim=1) > 0).all() and len(both.asked_M) > visual
    assert not text.asked_M[:visual].any() and (text.asked_M[visual:, Modality.TEXT] > 0).all()
    assert torch.isfinite(objective(masked_text()).total)


def test_projection_per_modality():
    objective = make(tiny(output="per_modality", space=12))
    features, _ = objective.encode_candidates(retrieval().candidates)
    assert features.shape[1] == 12
    objective(retrieval()).total.backward()
    assert objective.tower.output["visual"].weight.grad.any() and objective.tower.output["text"].weight.grad.any()


def test_mean_readout_counts_valid_tokens_alone():
    objective, batch = make(tiny(readout="mean")), retrieval()
    segment = batch.candidates.segments[0]
    padded = dataclasses.replace(
        segment,
        values=torch.nn.functional.pad(segment.values, (0, 2), value=7),
        positions=torch.arange(segment.values.shape[1] + 2).expand(segment.values.shape[0], -1),
        valid_BL=torch.nn.functional.pad(segment.valid_BL, (0, 2)),
    )
    plain, _ = objective.encode_candidates(batch.candidates)
    other, _ = objective.encode_candidates(dataclasses.replace(batch.candidates, segments=(padded,)))
    torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-6)
    at_start, _ = make(tiny()).encode_candidates(batch.candidates)
    assert not torch.allclose(plain, at_start)


@pytest.mark.parametrize("router", ["task", "task_specific"])
def test_a_task_that_was_not_trained_is_an_error(router):
    objective = make(tiny(router))
    objective(BATCHES["image"]())
    with pytest.raises(ValueError, match=f"router {router} knows the tasks image, .* cannot serve 'glue'"):
        objective(dataclasses.replace(BATCHES["image"](), task="glue"))
    objective = make(tiny("attribute"))
    objective(dataclasses.replace(BATCHES["image"](), task="glue"))


@pytest.mark.parametrize("router", ["token", "context", "modality", "task", "attribute", "task_specific"])
@pytest.mark.parametrize("task", BATCHES)
def test_every_router_trains_every_task(router, task):
    total, gradients = result(tiny(router), BATCHES[task](), noise=1)
    assert torch.isfinite(total).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    gates = [gradient for name, gradient in gradients.items() if ".gate." in name]
    assert router == "task_specific" or any(gate.any() for gate in gates)


def test_experts_may_start_equal():
    name = "tower.encoder.blocks.0.ffn.up.bank.weight"
    equal = make(tiny(experts={"same_start": True})).get_parameter(name)
    assert torch.equal(equal[0], equal[1]) and equal[0].any()
    drawn = make(tiny()).get_parameter(name)
    assert not torch.equal(drawn[0], drawn[1])
