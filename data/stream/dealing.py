"""Which data rank takes which micro-batch of a step, so that ranks that wait for each other wait little.

A step's micro-batches have costs that are known before it: their tasks are. Ranks that exchange in every layer (an expert group, or all
of them where they share candidates) are as slow in each micro-step as the slowest of them, so micro-batches of like cost are put side by
side there; groups meet at the end of a step alone, so the longest rows of such micro-batches are dealt out first. What a number means
(samples, noise) does not change with who takes it. Legend: M micro-batches, R data ranks, K micro-steps.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Dealing:
    """costs: of a micro-batch of each task, whatever rank has it; none: all alike. together: data ranks that wait for each other in every
    micro-step, neighbours by number; 0 = all of them."""

    costs: tuple[float, ...] = ()
    together: int = 1

    def deal(self, tasks: Sequence[int], ranks: int) -> list[list[int]]:
        """tasks: of the step's micro-batches [M] -> the numbers of each rank's, by micro-step [R][K]. With equal costs number = micro-step
        x ranks + rank."""
        costs = [self.costs[task] for task in tasks] if self.costs else [0.0] * len(tasks)
        size = self.together or ranks
        order = sorted(range(len(tasks)), key=lambda number: -costs[number])  # stable
        rows = [order[first : first + size] for first in range(0, len(order), size)]
        groups = ranks // size
        taken: list[list[list[int]]] = [[] for _ in range(groups)]
        free = [(0.0, 0, group) for group in range(groups)]  # (load, micro-steps, group), the least loaded first
        for row in rows:
            load, steps, group = heapq.heappop(free)
            taken[group].append(row)
            if steps + 1 < len(rows) // groups:
                heapq.heappush(free, (load + costs[row[0]], steps + 1, group))
        return [[row[place] for row in taken[group]] for group in range(groups) for place in range(size)]

    def loads(self, tasks: Sequence[int], ranks: int) -> tuple[float, float]:
        """Of a step: mean cost of the ranks, and cost of the slowest, whose micro-steps each last as long as the longest beside it."""
        dealt = self.deal(tasks, ranks)
        size = self.together or ranks
        slowest = max(
            sum(
                max(self.costs[tasks[number]] for number in beside)
                for beside in zip(*dealt[first : first + size], strict=True)
            )
            for first in range(0, ranks, size)
        )
        return sum(self.costs[task] for task in tasks) / ranks, slowest


IN_ORDER = Dealing()
"""All micro-batches cost the same."""
