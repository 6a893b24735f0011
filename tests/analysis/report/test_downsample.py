"""What few numbers keep of many."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.report.downsample import Buckets, Curve, downsampled, fewer, rounded

VALUES = st.lists(st.floats(width=64), max_size=300)


def test_pairs_of_points_keep_their_extremes():
    curve = downsampled([10, 20, 30, 40], [1.0, 3.0, -2.0, 4.0], most=2)
    assert curve == Curve(steps=[10, 30], means=[2.0, 1.0], lows=[1.0, -2.0], highs=[3.0, 4.0])
    assert not curve.is_whole


def test_a_short_curve_stays_as_it_is():
    curve = downsampled([1, 2, 3], [5.0, math.nan, 6.0], most=3)
    assert curve == Curve([1, 3], [5.0, 6.0], [5.0, 6.0], [5.0, 6.0]) and curve.is_whole
    assert downsampled([1], [math.inf], most=3) == Curve([], [], [], [])


@settings(max_examples=200, deadline=None)
@given(values=VALUES, most=st.integers(1, 40))
def test_nothing_lies_outside_of_its_bucket(values, most):
    curve = downsampled(range(len(values)), values, most)
    finite = [(step, value) for step, value in enumerate(values) if math.isfinite(value)]
    assert len(curve.steps) == min(most, len(finite)) and curve.steps == sorted(set(curve.steps))
    assert all(low <= mean <= high for low, mean, high in zip(curve.lows, curve.means, curve.highs, strict=True))
    if not finite:
        return
    assert min(curve.lows) == min(v for _, v in finite) and max(curve.highs) == max(v for _, v in finite)
    for step, value in finite:
        bucket = np.searchsorted(curve.steps, step, side="right") - 1
        assert curve.lows[bucket] <= value <= curve.highs[bucket]
    if len(finite) <= most:
        assert curve.means == [value for _, value in finite]


@settings(max_examples=100, deadline=None)
@given(number=st.integers(1, 200), most=st.integers(1, 10))
def test_means_over_time_hold_every_record_once(number, most):
    buckets = Buckets(most)
    for step in range(number):
        buckets.add(step, np.array([float(step), 1.0]))
    steps, means_B2 = buckets.means()
    counts_B = np.diff([*steps, number])
    assert len(steps) <= 2 * most and steps[0] == 0
    assert (counts_B[:-1] == counts_B[0]).all() or len(steps) == number
    np.testing.assert_allclose((means_B2[:, 0] * counts_B).sum(), number * (number - 1) / 2)
    np.testing.assert_allclose(means_B2[:, 1], 1.0)


def test_arrays_of_another_shape_begin_anew():
    buckets = Buckets(4)
    buckets.add(1, np.zeros((2, 3)))
    buckets.add(2, np.ones((2, 4)))
    steps, means = buckets.means()
    assert steps == [2] and means.shape == (1, 2, 4)
    assert Buckets(4).means()[0] == []


def test_neighbours_are_joined_until_they_are_few_enough():
    steps, means_B1 = fewer([1, 2, 3, 4, 5], np.array([[0.0], [2.0], [4.0], [6.0], [9.0]]), most=3)
    assert steps == [1, 3, 5] and means_B1.tolist() == [[1.0], [5.0], [9.0]]
    assert fewer([1, 2], np.zeros((2, 1)), most=2)[0] == [1, 2]


def test_numbers_are_as_short_as_they_may_be():
    assert rounded([1.0, 0.123456, 123456.0, math.nan, -0.0, 1e300]) == [1, 0.1235, 123500, None, 0, 1e300]
