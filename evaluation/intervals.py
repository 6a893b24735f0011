"""How sure a figure is: bootstrap over samples (Efron, 1979), seeded, so that the same evidence gives the same interval.

Evidence of a figure [N, 2]: what each sample adds to its numerator and to its denominator; the figure is the ratio of their sums.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def figure_of(evidence_N2: np.ndarray) -> float:
    return float(_ratios(evidence_N2.sum(axis=0)))


def interval(evidence_N2: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the figure over resamples of the samples."""
    figures_R = _resampled(evidence_N2, np.random.default_rng(seed), RESAMPLES)
    return middle(figures_R)


def resampled_places(count: int, seed: int = 0) -> np.ndarray:
    """[R, N]: the samples of each resample, for figures that are no such ratio."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def resampled_counts(one_N: np.ndarray, other_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """[R, K, K]: how many samples of each resample have each pair of values, float64. All that a figure of two columns of classes needs."""
    values, places_2N = np.unique(np.stack([one_N, other_N]), return_inverse=True)
    one, other = places_2N.reshape(2, -1)
    counts_X = np.bincount(one * len(values) + other, minlength=len(values) ** 2)
    drawn_RX = np.random.default_rng(seed).multinomial(len(one_N), counts_X / len(one_N), size=RESAMPLES)
    return drawn_RX.reshape(RESAMPLES, len(values), len(values)).astype(np.float64)


def difference(one_N2: np.ndarray, other_N2: np.ndarray, paired: bool, seed: int = 0) -> tuple[float, float, float]:
    """(figure of the other less that of the one, and the middle 95 % of it). paired: both were taken of the same samples in the same
    order, which then are drawn together."""
    rng = np.random.default_rng(seed)
    if paired:
        both_N4 = np.concatenate([one_N2, other_N2], axis=1)
        sums_R4 = _sums(both_N4, rng, RESAMPLES)
        differences_R = _ratios(sums_R4[:, 2:]) - _ratios(sums_R4[:, :2])
    else:
        differences_R = _resampled(other_N2, rng, RESAMPLES) - _resampled(one_N2, rng, RESAMPLES)
    return figure_of(other_N2) - figure_of(one_N2), *middle(differences_R)


def _resampled(evidence_N2: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    return _ratios(_sums(evidence_N2, rng, resamples))


def _ratios(sums_X2: np.ndarray) -> np.ndarray:
    """[X]; 0 where a denominator is, as scikit-learn has it: of F1, no sample of the class that is there or told."""
    numerators_X, denominators_X = sums_X2[..., 0], sums_X2[..., 1]
    return np.divide(numerators_X, denominators_X, out=np.zeros(denominators_X.shape), where=denominators_X != 0)


def _sums(values_NK: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """[R, K]; one resample at a time, as N may be large."""
    count = len(values_NK)
    return np.stack([values_NK[rng.integers(count, size=count)].sum(axis=0) for _ in range(resamples)])


def middle(figures_R: np.ndarray) -> tuple[float, float]:
    """95 % of the figures lie between these."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(figures_R, [tail, 100 - tail])
    return float(low), float(high)
