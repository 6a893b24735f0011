"""Figures of classification that are no mean over samples: those in which GLUE is reported. By scikit-learn and SciPy.

They are computed once, from the predictions of all samples: a mean of the ranks' or batches' figures would be another number.
Legend: N samples, K classes, R resamples.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from evaluation.intervals import interval, middle, resampled_counts, resampled_places


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Figures and their intervals, by name."""

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def agreement(
    names: Sequence[str],
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    targets_N: np.ndarray,
    expected_N: np.ndarray,
) -> Agreement:
    """By name:

    f1         of class 1, the data set's "yes" (MRPC, QQP)
    matthews   correlation of predicted and right classes, in [-1, 1] (CoLA)
    pearson    of `expected_N` with `targets_N` (STS-B): the score that the model expects and the one that people gave
    spearman   the same over their ranks
    A correlation with something that is always the same is 0.
    """
    columns = (labels_N, predicted_N, targets_N, expected_N)
    figures = {name: _figure(name, *columns) for name in names}
    return Agreement(figures, {name: _interval(name, *columns) for name in names})


def _interval(
    name: str, labels_N: np.ndarray, predicted_N: np.ndarray, targets_N: np.ndarray, expected_N: np.ndarray
) -> tuple[float, float]:
    """Of all resamples at once, as a thousand calls of the libraries would take seconds."""
    if name == "f1":  # 2 TP of 2 TP + FP + FN: a ratio of sums
        yes_N, told_yes_N = labels_N == 1, predicted_N == 1
        evidence_N2 = np.stack([2.0 * (yes_N & told_yes_N), 1.0 * yes_N + told_yes_N], axis=1)
        return interval(evidence_N2)
    if name == "matthews":
        return middle(_matthews(resampled_counts(labels_N, predicted_N)))
    places_RN = resampled_places(len(targets_N))
    both = targets_N[places_RN], expected_N[places_RN]
    if name == "spearman":
        both = rankdata(both[0], axis=1), rankdata(both[1], axis=1)
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore"):
        return middle(np.nan_to_num(pearsonr(*both, axis=1).statistic))


def _matthews(counts_RKK: np.ndarray) -> np.ndarray:
    """[R] of confusion matrices; 0 where all samples are of one class, or told to be."""
    total, right_R = counts_RKK[0].sum(), np.trace(counts_RKK, axis1=1, axis2=2)
    are_RK, told_RK = counts_RKK.sum(axis=2), counts_RKK.sum(axis=1)
    spreads_R = (total**2 - (are_RK**2).sum(axis=1)) * (total**2 - (told_RK**2).sum(axis=1))
    together_R = right_R * total - (are_RK * told_RK).sum(axis=1)
    return np.where(spreads_R > 0, together_R / np.sqrt(np.maximum(spreads_R, 1)), 0.0)


def _figure(
    name: str, labels_N: np.ndarray, predicted_N: np.ndarray, targets_N: np.ndarray, expected_N: np.ndarray
) -> float:
    if name == "f1":
        return float(f1_score(labels_N == 1, predicted_N == 1, zero_division=0.0))
    if name == "matthews":
        return float(matthews_corrcoef(labels_N, predicted_N))
    return _correlation({"pearson": pearsonr, "spearman": spearmanr}[name], targets_N, expected_N)


def _correlation(of: Callable, one_N: np.ndarray, other_N: np.ndarray) -> float:
    if len(one_N) < 2 or np.ptp(one_N) == 0 or np.ptp(other_N) == 0:
        return 0.0
    return float(of(one_N, other_N).statistic)
