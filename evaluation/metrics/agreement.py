"""Figures of classification that are no mean over samples: those in which GLUE is reported. By scikit-learn and SciPy.

They are computed once, from the predictions of all samples: a mean of the ranks' or batches' figures would be another number.
Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef


def agreement(
    names: Sequence[str],
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    targets_N: np.ndarray,
    expected_N: np.ndarray,
) -> dict[str, float]:
    """Figures by name.

    f1         of class 1, the data set's "yes" (MRPC, QQP)
    matthews   correlation of predicted and right classes, in [-1, 1] (CoLA)
    pearson    of `expected_N` with `targets_N` (STS-B): the score that the model expects and the one that people gave
    spearman   the same over their ranks
    A correlation with something that is always the same is 0.
    """
    return {name: _figure(name, labels_N, predicted_N, targets_N, expected_N) for name in names}


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
