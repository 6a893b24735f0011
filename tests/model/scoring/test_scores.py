"""Equal rows are no negatives of each other."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import log_softmax

from model.scoring.scores import compare
from parallel.collectives import Axis
from tests.helpers.batches import retrieval
from tests.helpers.models import make

ONE = Axis("one")


def test_a_perfect_model_has_no_loss_where_rows_are_equal():
    """Rows 0 and 1 are the same pair: without more, the best loss would be ln 2 for both."""
    features = torch.eye(3)[[0, 0, 1, 2]]
    scores = compare(features, features, torch.tensor([100.0]), ONE)
    labels = torch.arange(4)
    assert scores.cross_entropy(labels).item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 0] = True
    assert scores.without(excluded).cross_entropy(labels).item() == pytest.approx(0, abs=1e-6)
    assert scores.without(excluded).best_Q().tolist() == [0, 1, 2, 3]


def test_smoothing_is_over_the_candidates_that_are_compared():
    """By hand: logits 0 and ln 3 are left of three, so log p are -ln 4 and ln 3 - ln 4; 0.9 of the label and 0.1 of the mean."""
    features, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    scores = compare(features, candidates, torch.tensor([math.log(3)]), ONE)
    loss = scores.without(torch.tensor([[False, False, True]])).cross_entropy(torch.tensor([1]), 0.1)
    right, wrong = math.log(3 / 4), math.log(1 / 4)
    assert loss.item() == pytest.approx(-(0.9 * right + 0.1 * (right + wrong) / 2), rel=1e-5)


def test_without_equal_rows_nothing_changes_to_the_last_bit():
    objective, batch = make(), retrieval()
    numbers = torch.arange(8).view(4, 2)
    with_numbers = dataclasses.replace(batch, alike_Q2=numbers)
    losses = [objective(one).loss.item() for one in (batch, with_numbers)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("column", [0, 1])
def test_equal_images_and_equal_texts_are_left_out_in_both_directions(column):
    objective, batch = make(), retrieval()
    numbers = torch.arange(8).view(4, 2)
    numbers[2, column] = numbers[0, column]
    loss = objective(dataclasses.replace(batch, alike_Q2=numbers)).loss
    q, _ = objective.encode(batch.inputs, batch.read_Q2)
    c, _ = objective.encode_candidates(batch.candidates)
    logits = objective.logits(q, c, "retrieval")
    logits[0, 2] = logits[2, 0] = -math.inf
    expected = -(log_softmax(logits, dim=1).diagonal().mean() + log_softmax(logits, dim=0).diagonal().mean())
    torch.testing.assert_close(loss, expected)


def test_gradients_are_finite_where_all_rows_are_equal():
    objective, batch = make(), retrieval()
    losses = objective(dataclasses.replace(batch, alike_Q2=torch.zeros(4, 2, dtype=torch.long)))
    assert losses.loss.item() == 0 and losses.correct.item() == 4
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "change",
    [{"symmetric": False}, {"labels_Q": torch.tensor([1, 0, 2, 3])}, {"alike_Q2": torch.zeros(3, 2, dtype=torch.long)}],
)
def test_numbers_of_rows_need_pairs_in_order(change):
    with pytest.raises(ValueError, match="alike_Q2"):
        dataclasses.replace(retrieval(), **{"alike_Q2": torch.zeros(4, 2, dtype=torch.long), **change})
