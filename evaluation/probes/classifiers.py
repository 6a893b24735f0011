"""Classifiers of features, by scikit-learn. Legend: N training samples, M samples to tell, D width, C classes that training has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.seeding import rng

INVERSE_STRENGTHS = tuple(float(value) for value in np.logspace(-4, 2, 7))
"""C of logistic regression that are tried; the weights' penalty is |w|^2 / (2 C)."""
PENALTIES = tuple(float(value) for value in 2.0 ** np.arange(-10, 20))
"""Of ridge regression, the grid of V-MoE's few-shot evaluation (papers.md 3.7)."""
HELD_OUT = 5
"""One of so many training samples of a class chooses C."""
NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, float]]
"""(training_ND, labels_N, features_MD, seed) -> (labels_M as told, strength that was chosen)."""


def linear(
    training_ND: np.ndarray, labels_N: np.ndarray, features_MD: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised features. C is the one that is best on a fifth of each class of the training samples, the
    smallest of equal ones; the fit that counts is on all of them. Where no class can spare a sample, C is 1."""
    held_out_N = _held_out(labels_N, seed)
    strength = 1.0
    if held_out_N.any():
        fits = [_logistic(c).fit(training_ND[~held_out_N], labels_N[~held_out_N]) for c in INVERSE_STRENGTHS]
        scores = [fit.score(training_ND[held_out_N], labels_N[held_out_N]) for fit in fits]
        strength = INVERSE_STRENGTHS[int(np.argmax(scores))]
    return _logistic(strength).fit(training_ND, labels_N).predict(features_MD), strength


def ridge(
    training_ND: np.ndarray, labels_N: np.ndarray, features_MD: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Least squares to +1 for the own class and -1 for others, in closed form (papers.md 3.7). The penalty is the one of the least squared
    error where each training sample in turn is left out, which has a closed form, too: one sample per class is enough."""
    # Double: the grid's smallest penalty lies below fp32's rounding of the products.
    fit = RidgeClassifierCV(alphas=PENALTIES).fit(training_ND.astype(np.float64), labels_N)
    return fit.predict(features_MD.astype(np.float64)), float(fit.alpha_)


def knn(training_ND: np.ndarray, labels_N: np.ndarray, features_MD: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """The class with most weight among the 20 nearest by cosine, each of weight exp(cosine / 0.07), as self-supervised features are
    commonly compared (Wu et al., 2018)."""
    count = min(NEIGHBOURS, len(training_ND))
    found = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=_weights)
    return found.fit(training_ND, labels_N).predict(features_MD), float(count)


METHODS: dict[str, Classifier] = {"linear": linear, "ridge": ridge, "knn": knn}


def _logistic(strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def _held_out(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """Which samples [N] choose: a fifth of each class, at least one where it has two, none where it has one."""
    held_out_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        count = max(len(members) // HELD_OUT, 1) if len(members) > 1 else 0
        held_out_N[rng(seed, int(label)).permutation(members)[:count]] = True
    return held_out_N


def _weights(distances_MK: np.ndarray) -> np.ndarray:
    """Of neighbours at these cosine distances; the constant factor e^(1 / t) is left out."""
    return np.exp(-distances_MK / NEIGHBOUR_TEMPERATURE)
