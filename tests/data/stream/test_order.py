"""The order of samples is a pure function: a permutation of shards, then of windows."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from data.stream.order import EpochOrder

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any)


@hypothesis.given(sizes=SIZES, window=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_the_data(sizes, window, seed):
    order = EpochOrder(sizes, seed, window)
    every = {(shard, index) for shard, size in enumerate(sizes) for index in range(size)}
    for epoch in range(2):
        places = [order.locate(epoch * order.total + p) for p in range(order.total)]
        assert len(places) == len(set(places)) and set(places) == every


def test_epochs_differ_and_repeat_for_the_same_seed():
    def epoch(order, n):
        return [order.locate(n * 40 + p) for p in range(40)]

    first = EpochOrder([10] * 4, seed=1, window=16)
    assert epoch(first, 0) != epoch(first, 1)
    assert epoch(first, 1) == epoch(EpochOrder([10] * 4, seed=1, window=16), 1)
    assert epoch(first, 0) != epoch(EpochOrder([10] * 4, seed=2, window=16), 0)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no sample"):
        EpochOrder([0, 0], 0, 4)


def test_a_window_holds_samples_of_neighbouring_shards_alone():
    # Twelve shards of five samples, windows of 20: each spans four shards of the line.
    order = EpochOrder([5] * 12, seed=3, window=20)
    places = [order.locate(position) for position in range(60)]
    windows = [places[start : start + 20] for start in (0, 20, 40)]
    shards = [{shard for shard, _ in window} for window in windows]
    assert [len(found) for found in shards] == [4, 4, 4] and set.union(*shards) == set(range(12))
    for window, found in zip(windows, shards, strict=True):
        assert sorted(window) == sorted((shard, index) for shard in found for index in range(5))
        assert window != sorted(window)


def test_a_window_of_one_keeps_the_order_inside_the_shards():
    order = EpochOrder([3, 2], seed=0, window=1)
    places = [order.locate(position) for position in range(5)]
    assert sorted(places) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [index for shard, index in places if shard == 0] == [0, 1, 2]


def test_each_epoch_has_an_order_of_its_own_and_each_seed():
    def epoch(seed: int, number: int) -> list[tuple[int, int]]:
        order = EpochOrder([4] * 5, seed, window=8)
        return [order.locate(number * 20 + position) for position in range(20)]

    first, second, other = epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second and first != other
    assert [shard for shard, _ in first] != [shard for shard, _ in second]  # shards change places, too
