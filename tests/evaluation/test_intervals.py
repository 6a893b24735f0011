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
