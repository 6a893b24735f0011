"""The candidate sets that data ranks encode together: which micro-batches ask for which, and their union in a micro-step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from data.batch import CandidateSet, Scope, Sequences, TaskBatch
from data.seeding import rng
from data.stream.schedule import Assignment
from data.stream.source import Source


class SharedSets:
    """Of tasks with `candidates: sharded`. Tasks whose candidates are equal, and which no router tells apart, have one set; its number is
    that of the first of them.

    task_ids: of the tasks, to routers; none: they tell none apart.
    """

    def __init__(self, sources: Sequence[Source], task_ids: Sequence[int], seed: int) -> None:
        self.sources, self.seed = sources, seed
        self._fixed: dict[int, CandidateSet] = {}
        self._numbers: dict[int, int] = {}
        self._drawn: tuple[int, dict[int, CandidateSet]] = (-1, {})
        ids = task_ids or [0] * len(sources)
        for number, source in enumerate(sources):
            task = source.task
            if task.config.candidates != "sharded":
                continue
            self._numbers[number] = number
            if task.draws_candidates:
                continue
            found = CandidateSet(number=number, task=source.name, candidates=task.shared_candidates(rng(0)))
            for other in self._fixed.values():
                if ids[other.number] == ids[number] and _equal(other.candidates, found.candidates):
                    self._numbers[number] = other.number
                    break
            else:
                self._fixed[number] = found

    @property
    def kept(self) -> tuple[CandidateSet, ...]:
        """Those that are the same in all steps."""
        return tuple(self._fixed.values())

    def joined(self, batch: TaskBatch, assignment: Assignment) -> TaskBatch:
        """The micro-batch with the sets that are asked for beside it. Its own candidates are among them, unless it needs others (bytes
        that spell what is no word)."""
        numbers = sorted({self._numbers[task] for task in assignment.beside if task in self._numbers})
        if not numbers:
            return batch
        shared = tuple(self._set(number, assignment.step) for number in numbers)
        own = self._numbers.get(assignment.task)
        if own is None:
            return dataclasses.replace(batch, shared=shared)
        found = shared[numbers.index(own)].candidates
        if batch.candidates.num_rows != found.num_rows:
            return dataclasses.replace(batch, shared=shared)
        return dataclasses.replace(batch, candidates=found, scope=Scope.SHARDED, shared=shared, own=numbers.index(own))

    def _set(self, number: int, step: int) -> CandidateSet:
        """Of a step: where names are drawn, the same on all ranks."""
        if number in self._fixed:
            return self._fixed[number]
        if self._drawn[0] != step:
            self._drawn = (step, {})
        drawn = self._drawn[1]
        if number not in drawn:
            source = self.sources[number]
            candidates = source.task.shared_candidates(rng(self.seed, step, number, 3))
            drawn[number] = CandidateSet(number=number, task=source.name, candidates=candidates)
        return drawn[number]


def _equal(first: Sequences, second: Sequences) -> bool:
    return len(first.segments) == len(second.segments) and all(
        a.attributes == b.attributes
        and a.visibility == b.visibility
        and torch.equal(a.values, b.values)
        and torch.equal(a.valid_BL, b.valid_BL)
        for a, b in zip(first.segments, second.segments, strict=True)
    )
