"""The sigmoid loss of pairs."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from model.scoring.pairwise import sigmoid_loss


def test_two_pairs_by_hand():
    """Orthogonal pairs: cosines 1 and 0, logits 2 - 1 = 1 and -1; every one of the four answers is right by log(1 + 1 / e)."""
    eye_QW = 3 * torch.eye(2)
    loss, best_Q = sigmoid_loss(eye_QW, eye_QW, torch.arange(2), torch.tensor(2.0), torch.tensor(-1.0))
    assert loss.item() == pytest.approx(2 * math.log1p(math.exp(-1)))
    assert best_Q.tolist() == [0, 1]


def test_parts_give_the_loss_and_the_gradient_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    q, c = torch.randn(3, 4, generator=generator), torch.randn(7, 4, generator=generator)
    alike_Q2, alike_C2 = torch.tensor([[1, 9], [2, 8], [3, 7]]), torch.arange(14).view(7, 2) % 5

    def of(part: int) -> list[torch.Tensor]:
        tensors = [t.clone().requires_grad_() for t in (q, c, torch.tensor(2.0), torch.tensor(-1.0))]
        loss, best_Q = sigmoid_loss(*tensors[:2], torch.tensor([6, 0, 3]), *tensors[2:], alike_Q2, alike_C2, part)
        loss.backward()
        return [loss.detach(), best_Q, *(t.grad for t in tensors if t.grad is not None)]

    for whole, parts in zip(of(7), of(2), strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


def test_nothing_that_grows_with_all_pairs_is_kept_for_the_gradient():
    """Five read-outs and parts of three candidates."""
    q, alike_Q2 = torch.eye(5, requires_grad=True), torch.arange(10).view(5, 2)
    c, alike_C2 = torch.ones(6, 5), torch.arange(12).view(6, 2)
    loss, _ = sigmoid_loss(q, c, torch.arange(5), torch.tensor(2.0), torch.tensor(-1.0), alike_Q2, alike_C2, 3)
    assert not [x for x in gc.get_objects() if type(x) is torch.Tensor and x.shape == (5, 3)]
    loss.backward()
    assert q.grad is not None


def test_pairs_that_are_alike_do_not_count():
    q, c = torch.eye(2), torch.eye(2)
    same = torch.tensor([[0, 5], [1, 5]])
    loss, _ = sigmoid_loss(q, c, torch.arange(2), torch.tensor(2.0), torch.tensor(-1.0), same, same)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))  # the two right ones alone


def test_an_alike_pair_is_not_the_best_candidate():
    twice, same = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0, 5], [0, 6]])
    _, best_Q = sigmoid_loss(twice, twice, torch.arange(2), torch.tensor(2.0), torch.tensor(-1.0), same, same)
    assert best_Q.tolist() == [0, 1]
