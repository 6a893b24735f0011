"""Intervals of figures: as wide as theory says, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.intervals import difference, figure_of, interval


def evidence(right: int, total: int) -> np.ndarray:
    hits_N = np.zeros(total)
    hits_N[:right] = 1
    return np.stack([hits_N, np.ones(total)], axis=1)


def test_a_share_has_the_interval_of_a_share():
    low, high = interval(evidence(300, 1000))
    wide = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - wide, abs=0.004) and high == pytest.approx(0.3 + wide, abs=0.004)
    assert interval(evidence(300, 1000)) == (low, high) != interval(evidence(300, 1000), seed=1)


def test_a_ratio_of_sums():
    """Accuracy over tokens: texts bring several."""
    assert figure_of(np.array([[1.0, 4.0], [3.0, 4.0], [2.0, 2.0]])) == pytest.approx(6 / 10)
    assert interval(np.array([[2.0, 4.0]] * 50)) == (0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_resample_that_has_nothing_to_count_is_nought():
    """F1 of a class with one right sample of 10: 0.9^10 = .35 of the resamples lack it, so that the middle 95 % go from 0 to 1."""
    rare = np.zeros((10, 2))
    rare[0] = 2.0
    assert interval(rare) == (0, 1) and figure_of(rare) == 1
    none = np.zeros((10, 2))
    assert interval(none) == (0, 0) and figure_of(none) == 0 and difference(none, rare, paired=True) == (1, 0, 1)


def test_differences_of_the_same_samples_are_narrower():
    rng = np.random.default_rng(0)
    hits_N = (rng.random(400) < 0.5).astype(float)
    better_N = np.where(rng.random(400) < 0.05, 1.0, hits_N)  # differs in a few alone
    one, other = (np.stack([hits, np.ones(400)], axis=1) for hits in (hits_N, better_N))
    value, low, high = difference(one, other, paired=True)
    _, wide_low, wide_high = difference(one, other, paired=False)
    assert value == pytest.approx((better_N - hits_N).mean()) and 0 < low <= value <= high
    assert high - low < 0.5 * (wide_high - wide_low) and wide_low < 0
    assert difference(one, one, paired=True) == (0, 0, 0)
