"""Classifiers of features: closed forms by hand, and what they choose by."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.probes import classifiers
from evaluation.probes.classifiers import METHODS, knn, linear, ridge


def clouds(count: int, seed: int, spread: float = 0.3, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points around the axes of a space of 8 dimensions; class c lies at axis c."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return (np.eye(8)[labels] + spread * rng.standard_normal((count, 8))).astype(np.float32), labels


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_apart_is_told_apart(method):
    training, labels = clouds(30, 0)
    told, truth = clouds(60, 1)
    predicted, strength = METHODS[method](training, labels, told, 0)
    assert (predicted == truth).mean() > 0.95 and strength > 0
    again, _ = METHODS[method](training, labels, told, 0)
    assert np.array_equal(again, predicted)


@pytest.mark.parametrize("method", METHODS)
def test_labels_need_not_count_from_zero_and_two_are_enough(method):
    training, labels = clouds(20, 0, classes=2)
    predicted, _ = METHODS[method](training, 3 + 4 * labels, training, 0)
    assert set(predicted.tolist()) == {3, 7}


def test_ridge_is_the_closed_form():
    training, labels = clouds(24, 2, spread=0.8)
    told, _ = clouds(50, 3, spread=0.8)
    predicted, penalty = ridge(training, labels, told, 0)
    assert penalty in classifiers.PENALTIES
    x = training.astype(np.float64) - training.astype(np.float64).mean(axis=0)
    y = 2.0 * np.eye(3)[labels] - 1
    w = np.linalg.solve(x.T @ x + penalty * np.eye(8), x.T @ (y - y.mean(axis=0)))
    scores = (told - training.astype(np.float64).mean(axis=0)) @ w + y.mean(axis=0)
    assert np.array_equal(predicted, scores.argmax(axis=1))


def test_the_penalty_is_the_best_where_each_sample_in_turn_is_left_out():
    training, labels = clouds(12, 4, spread=1.5)
    y = 2.0 * np.eye(3)[labels] - 1

    def error(penalty: float) -> float:
        total = 0.0
        for out in range(12):
            keep = np.arange(12) != out
            x = training[keep].astype(np.float64)
            centred = x - x.mean(axis=0)
            w = np.linalg.solve(centred.T @ centred + penalty * np.eye(8), centred.T @ y[keep])
            total += float((((training[out] - x.mean(axis=0)) @ w + y[keep].mean(axis=0) - y[out]) ** 2).sum())
        return total

    _, penalty = ridge(training, labels, training, 0)
    assert penalty == min(classifiers.PENALTIES, key=error)


def test_neighbours_weigh_by_their_cosine(monkeypatch):
    """Two of class 1 at cosine 0.5 weigh less than one of class 0 at cosine 1: 2 exp(-0.5 / 0.07) < 1."""
    training = np.array([[2.0, 0], [1, 3**0.5], [1, 3**0.5]])
    assert knn(training, np.array([0, 1, 1]), np.array([[5.0, 0]]), 0)[0].tolist() == [0]
    monkeypatch.setattr(classifiers, "NEIGHBOUR_TEMPERATURE", 1.0)  # 2 exp(-0.5) > 1
    assert knn(training, np.array([0, 1, 1]), np.array([[5.0, 0]]), 0)[0].tolist() == [1]


def test_c_is_chosen_on_training_samples_that_are_held_out(monkeypatch):
    fitted: list[int] = []
    make = classifiers._logistic
    monkeypatch.setattr(classifiers, "_logistic", lambda c: fitted.append(c) or make(c))
    training, labels = clouds(30, 0)
    _, strength = linear(training, labels, training, 0)
    assert fitted == [*classifiers.INVERSE_STRENGTHS, strength]
    held_out = classifiers._held_out(labels, 0)
    assert [int(held_out[labels == c].sum()) for c in range(3)] == [2, 2, 2]
    fitted.clear()
    one_each = np.array([0, 1, 2])
    assert linear(training[:3], one_each, training, 0)[1] == 1.0 and fitted == [1.0]
