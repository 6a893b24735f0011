"""One micro-batch out of its samples, with others in place of bad ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from data.batch import TaskBatch
from data.seeding import rng
from data.shards import BadSample
from data.stream.faults import Fault, fault_of
from data.stream.schedule import Assignment, Schedule
from data.stream.source import Source
from data.tasks.base import Sample

MAX_ATTEMPTS = 100
"""Bad samples in a row before a stream gives up."""
NEIGHBOURS = 10
"""So many of the next samples are tried in place of a bad one, then others of the epoch: they may all be of one bad shard."""
READ_AHEAD_BYTES = 4 << 20
"""When so much is read, it is decoded before more is."""


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What the loop gets: the batch, and which part of the plan it is."""

    assignment: Assignment
    batch: TaskBatch
    num_samples: int
    num_tokens: int
    faults: tuple[Fault, ...]


def build_micro_batch(source: Source, assignment: Assignment, schedule: Schedule) -> MicroBatch:
    """Samples [start, start + batch size) of the source, decoded and joined."""
    size = schedule.batch_sizes[assignment.task]
    positions = range(assignment.start, assignment.start + size)
    faults: list[Fault] = []
    examples = [
        _example(source, position, read, schedule.seed, assignment.task, faults)
        for position, read in zip(positions, _read_ahead(source, positions), strict=True)
    ]
    batch = source.task.batch(examples, rng(schedule.seed, assignment.task, assignment.start, 1))
    num_tokens = batch.inputs.num_tokens + batch.candidates.num_tokens
    return MicroBatch(assignment, batch, size, num_tokens, tuple(faults))


@dataclasses.dataclass(frozen=True)
class _Read:
    """Sample `index` of a shard, or what is wrong with it."""

    shard: int
    index: int
    content: Sample | BadSample

    @property
    def num_bytes(self) -> int:
        return 0 if isinstance(self.content, BadSample) else sum(map(len, self.content.values()))


def _read(source: Source, position: int) -> _Read:
    shard, index = source.order.locate(position)
    try:
        return _Read(shard, index, source.shards.read(shard, index))
    except BadSample as error:
        error.__cause__ = error.__context__ = None  # their frames hold what was read of the sample, and so do its own
        return _Read(shard, index, error.with_traceback(None))


def _read_ahead(source: Source, positions: Iterable[int]) -> Iterator[_Read]:
    """The samples at these positions, several at a time: between one decoding and the next, reading takes twice as long, since
    decoding leaves none of its code and data in the processor's caches."""
    group: list[_Read] = []
    held = 0
    for position in positions:
        group.append(_read(source, position))
        held += group[-1].num_bytes
        if held >= READ_AHEAD_BYTES:
            yield from group
            group, held = [], 0
    yield from group


def _example(source: Source, position: int, read: _Read, seed: int, task: int, faults: list[Fault]) -> Any:
    """Of the sample that was read at this position, or of the first good one in its place."""
    for attempt in itertools.chain([read], _others(source, position, seed, task)):
        if isinstance(attempt.content, BadSample):
            faults.append(fault_of(source, attempt.shard, attempt.index, attempt.content))
            continue
        try:
            return source.task.example(attempt.content, rng(seed, task, position, 0))
        except BadSample as error:
            faults.append(fault_of(source, attempt.shard, attempt.index, error))
    raise RuntimeError(f"task {source.name}: {MAX_ATTEMPTS} unreadable samples in a row; the last: {faults[-1]}")


def _others(source: Source, position: int, seed: int, task: int) -> Iterator[_Read]:
    """What is tried in place of a bad sample: the next ones of the order, then any of its epoch."""
    total = source.order.total
    for number in range(1, MAX_ATTEMPTS):
        if number <= NEIGHBOURS:
            yield _read(source, position + number)
        else:
            offset = int(rng(seed, task, position, number, 2).integers(total))
            yield _read(source, position // total * total + offset)
