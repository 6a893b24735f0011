"""Cross-entropy in chunks: equal to the whole, and never with more than a chunk of logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.memory import most_held
from model.scoring.scores import compare
from model.scoring.vocabulary import vocabulary_loss
from parallel.collectives import Axis
from tests.helpers.batches import BATCHES
from tests.helpers.devices import DEVICES
from tests.helpers.models import make

ONE = Axis("one")


def drawn(queries: int, candidates: int, width: int, device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features, others = (torch.randn(n, width, generator=generator) for n in (queries, candidates))
    return [x.to(device).requires_grad_() for x in (features, others, torch.tensor([7.0]))]


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize(("smoothing", "weighted"), [(0.0, False), (0.1, False), (0.0, True)])
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(rows, smoothing, weighted, device):
    """5 read-outs of 11 candidates, in chunks of so many read-outs; the loss counts twice, as an upstream gradient."""
    labels = torch.tensor([3, 0, 10, 3, 7], device=device)
    weights = torch.arange(11.0, device=device).log1p() if weighted else None
    found = []
    for chunked in (False, True):
        features, candidates, scale = drawn(5, 11, 4, device)
        if chunked:
            loss, best = vocabulary_loss(features, candidates, labels, scale, ONE, smoothing, weights, most=11 * rows)
        else:
            scores = compare(features, candidates, scale, ONE)
            scores = scores if weights is None else scores.plus(weights)
            loss, best = scores.cross_entropy(labels, smoothing), scores.best_Q()
        (2 * loss).backward()
        found.append((loss.detach(), best, features.grad, candidates.grad, scale.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_chunk_of_logits_is_the_most_that_is_held(device):
    """512 read-outs of 4,096 candidates, 32 at a time: a chunk is 512 KiB and all logits would be 8 MiB. Forward holds the gradients of
    4,608 features of 4 numbers besides, and as many normalised ones."""
    features, candidates, scale = drawn(512, 4096, 4, device)
    labels = torch.arange(512, device=device)

    def forward() -> torch.Tensor:
        return vocabulary_loss(features, candidates, labels, scale, ONE, most=32 * 4096)[0]

    forward().backward()  # what libraries keep once
    most = most_held(device, forward)
    chunk, kept = 32 * 4096 * 4, 3 * 4608 * 4 * 4
    assert chunk < most < 1.5 * chunk + kept


def test_evaluation_makes_no_gradients():
    features, candidates, scale = (x.detach() for x in drawn(5, 11, 4))
    loss, _ = vocabulary_loss(features, candidates, torch.arange(5), scale, ONE, most=22)
    assert not loss.requires_grad
    expected = compare(features, candidates, scale, ONE).cross_entropy(torch.arange(5))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("task", ["text", "caption"])
def test_the_objective_takes_chunks_where_there_are_too_many_logits(task, monkeypatch):
    batch = BATCHES[task]().located()
    found = []
    for limit in (1 << 26, 4):
        monkeypatch.setattr("model.objective.MAX_LOGITS", limit)
        objective = make()
        losses = objective(dataclasses.replace(batch, weight=0.5), 1)
        losses.total.backward()
        found.append([losses.total.detach(), losses.correct, *(p.grad for p in objective.parameters())])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
