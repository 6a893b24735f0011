"""The objective: loss against a by-hand computation, gradients that must and must not flow, invariances."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize

from data.batch import Sequences
from model.embedding import interpolated, sine_cosine
from model.layout import PassLayout, layout_of
from model.moe.config import AuxiliaryConfig
from model.scoring.scores import Scores
from parallel.collectives import Axis
from parallel.kernels import load_kernels
from tests.helpers.batches import BATCHES, captioning, masked_text, retrieval
from tests.helpers.models import make, tiny

ROUTERS = ["attribute", "token"]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("task", BATCHES)
def test_every_task_has_a_loss_and_gradients(task, router):
    objective = make(tiny(router))
    losses = objective(BATCHES[task](), noise=1)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in objective.named_parameters():
        if ".gate." in name or (".weight" in name and ".bank." in name):
            assert parameter.grad is not None, name
    assert losses.use.taken_ME.shape == (2, 3, 4)
    torch.testing.assert_close(losses.use.taken_ME.sum(dim=2), losses.use.asked_M)  # no capacity: all are served
    tokens = BATCHES[task]().inputs.num_tokens + BATCHES[task]().candidates.num_tokens
    assert losses.use.asked_M.sum(dim=1).tolist() == [2 * tokens] * 2


def test_loss_is_the_formula():
    objective, batch = make(), masked_text()
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    c, _ = objective.encode_candidates(batch.candidates)
    scale = objective.log_scales["text"].exp()
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    logits = scale * normalize(q, dim=1) @ normalize(c, dim=1).T + batch.candidate_log_weights_C
    expected = -log_softmax(logits, dim=1)[torch.arange(3), batch.labels_Q].mean()
    assert objective(batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_retrieval_sums_its_two_directions():
    objective, batch = make(), retrieval()
    one_way = objective(dataclasses.replace(batch, symmetric=False)).loss
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    c, _ = objective.encode_candidates(batch.candidates)
    back = -log_softmax(objective.logits(q, c, "retrieval").T, dim=1).diagonal().mean()
    torch.testing.assert_close(objective(batch).loss, one_way + back)


def test_logit_scale_is_capped_without_gradient():
    objective, batch = make(), masked_text()
    with torch.no_grad():
        objective.log_scales["text"].fill_(10.0)
    objective(batch).total.backward()
    assert objective.log_scales["text"].grad.item() == 0.0
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    assert objective.logits(q, q, "text").max().item() == pytest.approx(100.0, rel=1e-4)


def test_no_gradient_from_a_query_to_its_own_word_or_later_ones():
    objective, batch = make(), captioning()
    of_inputs = layout_of(batch.inputs, by_group=objective.tower.encoder.merges)
    layout = PassLayout((of_inputs,))
    embedded = objective.tower.embedding(batch.inputs, of_inputs).detach().requires_grad_()
    x_TD, _ = objective.tower.encoder(embedded, layout)
    words, queries = 1 + 4, 1 + 4 + 4
    of_inputs.placed(x_TD)[1, queries + 2].sum().backward()  # q2 predicts w2
    reached = of_inputs.placed(embedded.grad)[1].abs().sum(dim=1) > 0
    assert reached.tolist() == [True] * 5 + [True, True, False, False] + [False, False, True, False], (words, queries)


@pytest.mark.parametrize("router", ROUTERS)
def test_padding_changes_nothing(router):
    objective, batch = make(tiny(router)), masked_text()
    segment = batch.inputs.segments[0]
    padded = dataclasses.replace(
        segment,
        values=torch.nn.functional.pad(segment.values, (0, 2), value=7),
        positions=torch.arange(8).expand(3, 8),
        valid_BL=torch.nn.functional.pad(segment.valid_BL, (0, 2)),
    )
    other = dataclasses.replace(batch, inputs=Sequences(segments=(padded,)))
    torch.testing.assert_close(objective(batch).loss, objective(other).loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(objective(batch).use.taken_ME, objective(other).use.taken_ME)


def test_noise_is_a_function_of_its_key():
    objective, batch = make(tiny(drop_path=0.3)), masked_text()
    assert objective(batch, 5).loss == objective(batch, 5).loss
    assert objective(batch, 5).loss != objective(batch, 6).loss
    assert objective(batch).loss == objective(batch).loss


def test_initial_weights_follow_the_rules():
    objective = make(tiny(layer_scale=1e-3))
    parameters = dict(objective.named_parameters())
    assert (parameters["tower.encoder.blocks.0.attention_norm.weight"] == 1).all()
    assert (parameters["tower.encoder.blocks.0.attention_scale"] == 1e-3).all()
    assert (parameters["tower.encoder.blocks.0.attention.qkv.bank.bias"] == 0).all()
    qkv = parameters["tower.encoder.blocks.1.attention.qkv.linear.weight"]
    assert qkv.abs().max() <= (6 / (16 + 16)) ** 0.5  # Q, K and V as separate 16 x 16 matrices
    bank = parameters["tower.encoder.blocks.0.ffn.up.bank.weight"]
    assert not torch.equal(bank[0], bank[1])
    assert parameters["tower.embedding.tokens.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_sine_cosine_positions_by_hand():
    # Width 8: two frequencies, 1 and 10000^(-1/2) = 0.01; row 2, column 3.
    got = sine_cosine(torch.tensor([[[2, 3]]]), 8)[0, 0]
    expected = torch.tensor([2.0, 0.02]).sin().tolist() + torch.tensor([2.0, 0.02]).cos().tolist()
    expected += torch.tensor([3.0, 0.03]).sin().tolist() + torch.tensor([3.0, 0.03]).cos().tolist()
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_learned_positions_are_interpolated():
    table = torch.tensor([[0.0, 10.0], [20.0, 30.0]]).unsqueeze(-1)  # 10 a column, 20 a row
    grid = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.0, 0.5], [0.25, 0.5], [2.0, 0.0]]])
    assert interpolated(table, grid)[0, :, 0].tolist() == pytest.approx([0.0, 30.0, 5.0, 10.0, 20.0])
    assert torch.equal(interpolated(table, torch.tensor([[[1, 0]]])), table[1, 0].view(1, 1, 1))  # whole coordinates


def test_learned_positions_carry_over_to_a_higher_resolution():
    first = make(tiny(positions="learned", position_grid=2))  # 16 px, patch 8
    second = make(dataclasses.replace(first.config, image_size=32, position_scale=0.5))
    assert first.tower.embedding.spatial_positions.shape == second.tower.embedding.spatial_positions.shape == (2, 2, 16)
    first(retrieval()).total.backward()
    assert first.tower.embedding.spatial_positions.grad.any()


def test_apex_asked_for_and_missing_is_a_clear_error():
    try:
        import apex.normalization  # noqa: F401
    except ImportError:
        with pytest.raises(ModuleNotFoundError, match="kernels=torch"):
            load_kernels("apex")
    else:
        assert load_kernels("apex").layer_norm(8) is not None


def test_the_weight_scales_what_is_optimised_and_not_what_is_reported():
    objective, batch = make(), masked_text()
    plain, double = objective(batch), objective(dataclasses.replace(batch, weight=2.5))
    torch.testing.assert_close(double.total, 2.5 * plain.total)
    torch.testing.assert_close(double.loss, plain.loss)


def test_auxiliary_losses_are_weighted_and_reported_unweighted():
    auxiliary = AuxiliaryConfig(importance=0.5, z=0.25)
    objective = make(tiny("token", {"auxiliary": auxiliary, "noise": "none", "placement": "all"}))
    losses = objective(retrieval())
    assert losses.use.asked_M.shape[0] == 4  # two blocks of two decisions
    expected = losses.loss + 0.5 * losses.auxiliary["importance"] + 0.25 * losses.auxiliary["z"]
    torch.testing.assert_close(losses.total.detach(), expected)
    assert losses.auxiliary["z"] > 0 and not losses.auxiliary["z"].requires_grad


def test_label_smoothing_by_hand():
    # Two candidates with logits ln 3 and 0: probabilities 3/4 and 1/4. A label of candidate 0, smoothed by 0.2, is
    # (0.9, 0.1): -(0.9 ln 0.75 + 0.1 ln 0.25).
    scores = Scores(torch.tensor([[math.log(3.0), 0.0]]), 0, 2, Axis("tensor"))
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))
    assert scores.cross_entropy(torch.tensor([0]), 0.2).item() == pytest.approx(expected, rel=1e-6)
    assert scores.cross_entropy(torch.tensor([0])).item() == pytest.approx(-math.log(0.75), rel=1e-6)


@pytest.mark.parametrize("task", ["image", "retrieval"])
def test_the_smoothing_of_the_batch_reaches_the_loss(task):
    objective, batch = make(), dataclasses.replace(BATCHES[task](), label_smoothing=0.0)
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    c, _ = objective.encode_candidates(batch.candidates)
    logits = objective.logits(q, c, batch.temperature)
    expected = cross_entropy(logits, batch.labels_Q, label_smoothing=0.3)
    if batch.symmetric:
        expected = expected + cross_entropy(logits.T, torch.arange(len(logits)), label_smoothing=0.3)
    smoothed = objective(dataclasses.replace(batch, label_smoothing=0.3)).loss
    torch.testing.assert_close(smoothed, expected)
    assert abs(smoothed.item() - objective(batch).loss.item()) > 1e-4


def test_right_answers_are_counted():
    objective, batch = make(), masked_text()
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    c, _ = objective.encode_candidates(batch.candidates)
    best = (objective.logits(q, c, "text") + batch.candidate_log_weights_C).argmax(dim=1)
    right = dataclasses.replace(batch, labels_Q=best)
    wrong = dataclasses.replace(batch, labels_Q=(best + torch.tensor([1, 0, 0])) % c.shape[0])
    assert (objective(right).correct.item(), objective(wrong).correct.item()) == (3, 2)
