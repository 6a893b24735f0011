"""One micro-batch out of its samples, with others in place of bad ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from data.batch import Scope, TaskBatch, TokenCounts
from data.seeding import rng
from data.shards import BadSample
from data.stream.faults import Fault, fault_of, too_many
from data.stream.schedule import Assignment, Schedule
from data.stream.shared_sets import SharedSets
from data.stream.source import Source
from data.tasks.base import Sample

MAX_ATTEMPTS = 100
"""Bad samples in a row before a stream gives up."""
NEIGHBOURS = 10
"""So many of the next samples are tried in place of a bad one, then others of the epoch: they may all be of one bad shard."""
SEARCH = 10_000
"""So many places are looked at for one that is not in the batch."""
READ_AHEAD_BYTES = 4 << 20
"""When so much is read, it is decoded before more is."""


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What the loop gets: the batch, and which part of the plan it is. inputs, candidates, shared: what they hold, counted where the batch
    was made, on the host; of shared candidates the rank encodes a part."""

    assignment: Assignment
    batch: TaskBatch
    num_samples: int
    inputs: TokenCounts
    candidates: TokenCounts
    faults: tuple[Fault, ...]
    shared: tuple[TokenCounts, ...] = ()

    def encoded(self, data_ranks: int) -> Iterator[tuple[TokenCounts, float]]:
        """What the rank encodes: sequences, and the part of them that it takes."""
        yield self.inputs, 1.0
        if self.batch.scope != Scope.SHARDED:
            yield self.candidates, 1.0
        for counts in self.shared:
            yield counts, 1 / data_ranks


def build_micro_batch(
    source: Source, assignment: Assignment, schedule: Schedule, shared: SharedSets | None = None
) -> MicroBatch:
    """Samples [start, start + batch size) of the source, decoded and joined; shared: candidate sets of the ranks."""
    size = schedule.batch_sizes[assignment.task]
    positions = range(assignment.start, assignment.start + size)
    faults: list[Fault] = []
    taken = set(map(source.order.locate, positions))
    examples = []
    for position, read in zip(positions, _read_ahead(source, positions), strict=True):
        others = _others(source, position, positions.stop, taken, schedule.seed, assignment.task)
        examples.append(
            _example(source, position, itertools.chain([read], others), schedule.seed, assignment.task, faults)
        )
    batch = source.task.batch(examples, rng(schedule.seed, assignment.task, assignment.start, 1))
    if shared is not None:
        batch = shared.joined(batch, assignment)
    batch = batch.located()
    counts = tuple(of_all.candidates.counts for of_all in batch.shared) if shared is not None else ()
    return MicroBatch(assignment, batch, size, batch.inputs.counts, batch.candidates.counts, tuple(faults), counts)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Sample `index` of a shard, or what is wrong with it."""

    shard: int
    index: int
    content: Sample | BadSample

    @property
    def num_bytes(self) -> int:
        return 0 if isinstance(self.content, BadSample) else sum(map(len, self.content.values()))


def _read(source: Source, shard: int, index: int) -> _Read:
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
        group.append(_read(source, *source.order.locate(position)))
        held += group[-1].num_bytes
        if held >= READ_AHEAD_BYTES:
            yield from group
            group, held = [], 0
    yield from group


def _example(
    source: Source, position: int, attempts: Iterable[_Read], seed: int, task: int, faults: list[Fault]
) -> Any:
    """Of the first good one: the sample at this position, or another in its place."""
    for attempt in attempts:
        if isinstance(attempt.content, BadSample):
            faults.append(fault_of(source, attempt.shard, attempt.index, attempt.content))
            continue
        try:
            return source.task.example(attempt.content, rng(seed, task, position, 0))
        except BadSample as error:
            faults.append(fault_of(source, attempt.shard, attempt.index, error))
    last = faults[-1]
    raise too_many(
        f"task {source.name}: {MAX_ATTEMPTS} bad samples in a row; the last, {last.place}: {last.reason}", last
    )


def _others(
    source: Source, position: int, end: int, taken: set[tuple[int, int]], seed: int, task: int
) -> Iterator[_Read]:
    """What is tried in place of a bad sample at `position`: those after the batch's last position, then any of the epoch. None that is in
    the batch already, as pairs are told apart from each other, unless nothing else is left."""
    total = source.order.total
    tried = 1
    for number in itertools.count():
        if number < NEIGHBOURS:
            place = source.order.locate(end + number)
        else:
            offset = int(rng(seed, task, position, number, 2).integers(total))
            place = source.order.locate(position // total * total + offset)
        if place in taken and number < SEARCH and len(taken) < total:
            continue
        taken.add(place)
        yield _read(source, *place)
        tried += 1
        if tried == MAX_ATTEMPTS:
            return
