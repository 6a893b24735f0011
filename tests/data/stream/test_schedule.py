"""The schedule is a pure function: independent of ranks, continued exactly."""

from __future__ import annotations

import collections

import hypothesis
import pytest
from hypothesis import strategies as st

from data.stream.schedule import Assignment, Schedule


def taken(schedule: Schedule, ranks: int, steps: int) -> collections.Counter:
    """(task, position) of every sample that `ranks` ranks take in `steps` steps."""
    counts: collections.Counter = collections.Counter()
    for rank in range(ranks):
        stream = schedule.of_rank(0, (0,) * len(schedule.weights), rank, ranks)
        for _ in range(steps * schedule.micro_batches // ranks):
            assignment = next(stream)
            counts.update((assignment.task, assignment.start + i) for i in range(schedule.batch_sizes[assignment.task]))
    return counts


@hypothesis.given(seed=st.integers(0, 99), steps=st.integers(1, 6), draw=st.sampled_from(["mixed", "same"]))
def test_any_number_of_ranks_takes_the_same_samples_once(seed, steps, draw):
    schedule = Schedule((1.0, 2.0, 0.5), (2, 3, 1), micro_batches=4, seed=seed, draw=draw)
    alone = taken(schedule, 1, steps)
    assert set(alone.values()) == {1}
    for task in range(3):  # no gap: positions are 0 .. n-1
        positions = sorted(p for t, p in alone if t == task)
        assert positions == list(range(len(positions)))
    assert taken(schedule, 2, steps) == alone == taken(schedule, 4, steps)


def test_resume_continues_where_it_stopped():
    schedule = Schedule((1.0, 1.0), (2, 3), micro_batches=2, seed=5)
    whole = schedule.of_rank(0, (0, 0), 0, 1)
    first = [next(whole) for _ in range(12)]
    consumed = (0, 0)
    for step in range(3):
        _, consumed = schedule.step(step, consumed)
    resumed = schedule.of_rank(3, consumed, 0, 1)
    assert [next(resumed) for _ in range(6)] == first[6:]
    assert all(isinstance(assignment, Assignment) for assignment in first)


def test_draws():
    same = Schedule((1.0, 1.0, 1.0), (1, 1, 1), micro_batches=8, seed=0, draw="same")
    assert all(len(set(same.tasks_of(step))) == 1 for step in range(20))
    weighted = Schedule((3.0, 1.0), (1, 1), micro_batches=1000, seed=0)
    assert 0.2 < sum(weighted.tasks_of(0)) / 1000 < 0.3
    with pytest.raises(ValueError, match="3 data ranks"):
        next(weighted.of_rank(0, (0, 0), 0, 3))
