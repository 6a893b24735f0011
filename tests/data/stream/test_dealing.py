"""Micro-batches are dealt to ranks by cost; which samples and what noise they have does not change."""

from __future__ import annotations

import itertools
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies as st

from data.stream.dealing import IN_ORDER, Dealing
from data.stream.schedule import Assignment, Schedule

LAYOUTS = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (6, 3), (12, 4), (12, 0), (4, 0)])
COSTS = st.lists(st.floats(0.1, 100.0), min_size=3, max_size=3).map(tuple)


def of_ranks(schedule: Schedule, ranks: int, start: int, steps: int, consumed) -> list[list[Assignment]]:
    """By rank, in the order in which each takes them."""
    number = steps * schedule.micro_batches // ranks
    return [list(itertools.islice(schedule.of_rank(start, consumed, rank, ranks), number)) for rank in range(ranks)]


@hypothesis.given(layout=LAYOUTS, costs=COSTS, seed=st.integers(0, 99), draw=st.sampled_from(["mixed", "same"]))
def test_every_number_is_dealt_once_and_means_the_same(layout, costs, seed, draw):
    ranks, together = layout
    schedule = Schedule((1.0, 2.0, 0.5), (2, 3, 1), 12, seed, draw, Dealing(costs, together))
    (alone,) = of_ranks(Schedule((1.0, 2.0, 0.5), (2, 3, 1), 12, seed, draw), 1, 0, 3, (0, 0, 0))
    dealt = of_ranks(schedule, ranks, 0, 3, (0, 0, 0))
    assert sorted(itertools.chain(*dealt), key=lambda one: (one.step, one.number)) == alone
    # All ranks are told the same tasks of a micro-step, and those are the ones that they have in it.
    for beside in zip(*dealt, strict=True):
        assert {one.beside for one in beside} == {tuple(sorted({one.task for one in beside}))}
        assert len({one.step for one in beside}) == 1


@hypothesis.given(before=LAYOUTS, after=LAYOUTS, costs=COSTS, seed=st.integers(0, 99), kill=st.integers(0, 4))
def test_another_layout_goes_on_where_one_stopped(before, after, costs, seed, kill):
    def schedule(together: int) -> Schedule:
        return Schedule((1.0, 2.0, 0.5), (2, 3, 1), 12, seed, "mixed", Dealing(costs, together))

    consumed = (0, 0, 0)
    for step in range(kill):
        _, consumed = schedule(0).step(step, consumed)
    parts = [
        *of_ranks(schedule(before[1]), before[0], 0, kill, (0, 0, 0)),
        *of_ranks(schedule(after[1]), after[0], kill, 5 - kill, consumed),
    ]
    (whole,) = of_ranks(schedule(1), 1, 0, 5, (0, 0, 0))
    found = sorted(itertools.chain(*parts), key=lambda one: (one.step, one.number))
    assert found == sorted(whole, key=lambda one: (one.step, one.number))
    taken = Counter((one.task, one.start) for one in found)
    assert set(taken.values()) == {1}


@hypothesis.given(layout=LAYOUTS, costs=COSTS, tasks=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_dealing_by_cost_is_never_slower_than_taking_turns(layout, costs, tasks):
    """In groups that wait in every micro-step and meet at the end; a step cannot be faster than its mean, nor than any micro-batch."""
    ranks, together = layout
    size = together or ranks
    mean, slowest = Dealing(costs, together).loads(tasks, ranks)
    in_order = IN_ORDER.deal(tasks, ranks)
    by_turns = max(
        sum(max(costs[tasks[n]] for n in beside) for beside in zip(*in_order[first : first + size], strict=True))
        for first in range(0, ranks, size)
    )
    assert mean == pytest.approx(sum(costs[task] for task in tasks) / ranks)
    assert max(mean, max(costs[task] for task in tasks)) <= slowest * (1 + 1e-9)
    # The longest first is a heuristic: within 4/3 of the best where ranks meet at the end alone, the best where all wait.
    assert slowest <= by_turns * (4 / 3 if size < ranks else 1 + 1e-9)


def test_by_hand():
    """Two groups of two ranks: 9 beside 8, 5 beside 5, 2 beside 1, 1 beside 0.5; the longest of these go to the group that has least."""
    costs = (9.0, 1.0, 5.0, 2.0, 8.0, 5.0, 0.5, 1.0)
    dealt = Dealing(costs, 2).deal(range(8), 4)
    assert dealt == [[0, 7], [4, 6], [2, 3], [5, 1]]
    assert Dealing(costs, 2).loads(range(8), 4) == (sum(costs) / 4, 10.0)
    assert Dealing(costs, 0).deal(range(8), 4) == [[0, 3], [4, 1], [2, 7], [5, 6]]
    assert IN_ORDER.deal(range(8), 4) == [[0, 4], [1, 5], [2, 6], [3, 7]]
