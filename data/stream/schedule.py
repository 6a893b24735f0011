"""Which task each micro-batch belongs to, and which samples it takes.

A step has a fixed number of numbered micro-batches over all data ranks. The draw is a pure function of (seed, step, number), so the
number of ranks changes nothing: two ranks with one micro-batch each do what one rank does with two. Who takes which is dealt out
(data/stream/dealing.py), by costs that are known everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from data.seeding import rng
from data.stream.dealing import IN_ORDER, Dealing


def shares(
    weights: Sequence[float], sizes: Sequence[int], mixture: Literal["weights", "sizes"], temperature: float
) -> tuple[float, ...]:
    """Share of each task among the micro-batches: by its weight, or by weight * size ** (1 / temperature). Their sum is 1."""
    logs = np.log(weights)
    if mixture == "sizes":
        logs = logs + np.log(sizes) / temperature
    parts = np.exp(logs - logs.max())
    return tuple((parts / parts.sum()).tolist())


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One micro-batch: samples [start, start + batch size) of the task's stream. beside: tasks of all data ranks in the same
    micro-step, this one's included."""

    step: int
    number: int
    task: int
    start: int
    beside: tuple[int, ...] = dataclasses.field(default=(), compare=False)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """weights: relative frequency of each task; batch_sizes: samples per micro-batch."""

    weights: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    micro_batches: int
    seed: int
    draw: Literal["mixed", "same"] = "mixed"
    dealing: Dealing = IN_ORDER

    def tasks_of(self, step: int) -> list[int]:
        """The task of every micro-batch of the step."""
        bounds = np.cumsum(self.weights) / np.sum(self.weights)
        draws = rng(self.seed, step).random(self.micro_batches if self.draw == "mixed" else 1)
        tasks = np.minimum(np.searchsorted(bounds, draws, side="right"), len(self.weights) - 1)
        return [int(task) for task in np.resize(tasks, self.micro_batches)]

    def step(self, step: int, consumed: tuple[int, ...]) -> tuple[list[Assignment], tuple[int, ...]]:
        """The micro-batches of a step that starts after `consumed` samples of each task, and the counts after it."""
        counts = list(consumed)
        assignments = []
        for number, task in enumerate(self.tasks_of(step)):
            assignments.append(Assignment(step, number, task, counts[task]))
            counts[task] += self.batch_sizes[task]
        return assignments, tuple(counts)

    def of_rank(
        self, start_step: int, consumed: tuple[int, ...], data_rank: int, data_ranks: int
    ) -> Iterator[Assignment]:
        """This rank's micro-batches from `start_step` on, without end."""
        if self.micro_batches % data_ranks:
            raise ValueError(
                f"{self.micro_batches} micro-batches per step must be a multiple of the {data_ranks} data ranks"
            )
        step = start_step
        while True:
            assignments, consumed = self.step(step, consumed)
            dealt = self.dealing.deal([assignment.task for assignment in assignments], data_ranks)
            for micro_step, number in enumerate(dealt[data_rank]):
                beside = {assignments[numbers[micro_step]].task for numbers in dealt}
                yield dataclasses.replace(assignments[number], beside=tuple(sorted(beside)))
            step += 1
