"""Auxiliary losses against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from model.moe import losses
from model.moe.losses import global_entropy, importance, load, local_entropy, switch, z_loss
from tests.helpers.hot_path import Launches

ONE_GROUP = torch.zeros(4, dtype=torch.long)
BOTH_WAYS = pytest.mark.parametrize("on_a_gpu", [False, True], indirect=True)


@pytest.fixture
def on_a_gpu(request, monkeypatch) -> bool:
    """Sums as a GPU makes them."""
    monkeypatch.setattr(losses, "adds_in_any_order", lambda x: request.param)
    return request.param


def test_importance_by_hand():
    # Sums 3 and 1: mean 2, population std 1, (1/2)^2.
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert importance(probs, ONE_GROUP, 1).item() == pytest.approx(0.25)
    assert importance(torch.full((4, 2), 0.5), ONE_GROUP, 1).item() == 0.0


@BOTH_WAYS
def test_importance_is_a_mean_over_routing_groups(on_a_gpu):
    probs = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]])
    assert importance(probs, ONE_GROUP, 1).item() == 0.0  # balanced over the batch
    assert importance(probs, torch.tensor([0, 0, 1, 1]), 2).item() == pytest.approx(0.25)  # (0.5 / 1)^2 in each
    assert importance(probs[:2], ONE_GROUP[:2], 2).item() == pytest.approx(0.125)  # an empty group counts as balanced


def test_load_by_hand():
    # Threshold 1 (the largest noisy logit). Chances 1 - Phi(1) = 0.158655 and 1 - Phi(0) = 0.5:
    # mean 0.329328, std 0.170672, (std / mean)^2 = 0.268576.
    logits = torch.tensor([[0.0, 1.0]])
    assert load(logits, logits, 1, 1.0, ONE_GROUP[:1], 1).item() == pytest.approx(0.268576, abs=1e-5)
    # Half the noise: 1 - Phi(2) = 0.022750 and 0.5: mean 0.261375, std 0.238625, ratio^2 = 0.833497.
    assert load(logits, logits, 1, 0.5, ONE_GROUP[:1], 1).item() == pytest.approx(0.833497, abs=1e-5)


def test_z_loss_by_hand():
    # log-sum-exp: log 2 and log 4.
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)
    assert z_loss(logits[:0]).item() == 0.0


@BOTH_WAYS
def test_sums_by_group_and_their_gradients(on_a_gpu):
    """Sums of tokens 0 and 2, of none, and of token 1. On a GPU without `index_add`, which adds there in any order."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    with Launches() as launches:
        sums = losses._sum_by_group(values, torch.tensor([0, 2, 0]), 3)
    assert sums.tolist() == [[6.0, 8.0], [0.0, 0.0], [3.0, 4.0]]
    assert launches.seen["index_add"] == (0 if on_a_gpu else 1)
    (sums * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert values.grad.tolist() == [[1.0, 1.0], [100.0, 100.0], [1.0, 1.0]]


@BOTH_WAYS
def test_switch_by_hand(on_a_gpu):
    probs = torch.tensor([[0.75, 0.25]] * 2 + [[0.25, 0.75]] * 2)
    assert switch(probs, torch.tensor([0, 0, 1, 1]), ONE_GROUP, 1).item() == pytest.approx(1.0)  # balanced
    # All first choices on expert 0: 2 * (1 * 0.5 + 0 * 0.5).
    assert switch(probs, torch.tensor([0, 0, 0, 0]), ONE_GROUP, 1).item() == pytest.approx(1.0)
    # A group at a time (GShard): 2 * (1 * 0.75) in both.
    assert switch(probs, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 2).item() == pytest.approx(1.5)


def test_local_entropy_by_hand():
    probs = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    two, sure, single, nothing = [0.5, 0, 0.5], [0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 0]  # shares of one modality's tokens
    found = local_entropy(probs, torch.tensor([two, sure, single, nothing]).t())
    expected = [(math.log(4) + math.log(2)) / 2, 0.0, math.log(4), 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-7)


def test_global_entropy_by_hand():
    # Two tokens on two experts: the mean has entropy log 2.
    probs = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    everyone, nobody = [0.5, 0.5], [0.0, 0.0]
    shares = torch.tensor([everyone, everyone, nobody]).t()
    found = [loss.item() for loss in global_entropy(probs, shares, (math.log(4), math.log(2), math.log(4)))]
    assert found == pytest.approx([math.log(2), 0.0, 0.0], abs=1e-6)


def test_global_entropy_is_flat_above_its_threshold():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    everyone = torch.full((6, 1), 1 / 6)
    (loss,) = global_entropy(logits.softmax(-1), everyone, [math.log(1.5)])
    loss.backward()
    assert loss.item() == 0.0 and not logits.grad.any()
    (loss,) = global_entropy(logits.softmax(-1), everyone, [math.log(4)])
    loss.backward()
    assert logits.grad.any()


def test_probabilities_that_underflow_keep_gradients_finite():
    logits = torch.tensor([[0.0, -200.0], [0.0, -200.0]], requires_grad=True)
    everyone = torch.full((2, 1), 0.5)
    probs = logits.softmax(-1)
    assert (probs[:, 1] == 0).all()
    (local_entropy(probs, everyone)[0] + global_entropy(probs, everyone, [math.log(2)])[0]).backward()
    assert torch.isfinite(logits.grad).all()
