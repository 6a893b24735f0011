"""Tells when routing goes wrong: experts that nobody chooses any more, and decisions that choose the same few for everything.

Legend: N decisions, E experts.
"""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np

from model.config import ModelConfig
from run.metrics.expert_use import Record, decision_names

DEAD = 0.01
"""An expert is dead that takes less than this part of an equal share."""
COLLAPSED = 0.95
"""A decision has collapsed whose busiest experts, as many as a token has, take more than this part of everything that experts take."""


@dataclasses.dataclass(frozen=True)
class Alarms:
    """after_steps: so long it must be so at every log step before it is told; 0 = never. dead_NE, collapsed_N: for how many steps it has
    been so."""

    names: tuple[str, ...]
    choices: int
    after_steps: int
    dead_NE: np.ndarray
    collapsed_N: np.ndarray

    @classmethod
    def of(cls, model: ModelConfig, after_steps: int) -> Self:
        names = tuple(decision_names(model))
        experts = model.experts.num_experts
        choices = 1 if model.experts.router == "task_specific" else model.experts.top_k
        counts_NE = np.zeros((len(names), experts), dtype=np.int64)
        return cls(names, choices, after_steps, counts_NE, counts_NE[:, 0].copy())

    def after(self, record: Record, steps: int) -> tuple[Self, tuple[str, ...]]:
        """With one more record, of so many steps -> (the state then, lines on what has begun since the last one)."""
        if not self.after_steps or "expert_load" not in record:
            return self, ()
        load_NE = np.asarray(record["expert_load"])
        taken_N, num_experts = load_NE.sum(axis=1), load_NE.shape[1]
        share_NE = load_NE / np.maximum(taken_N, 1e-9)[:, None]
        # A decision without tokens says nothing of its experts.
        asked_N = taken_N > 0
        is_dead_NE = (share_NE < DEAD / num_experts) & asked_N[:, None]
        busiest_N = np.sort(share_NE, axis=1)[:, -self.choices :].sum(axis=1)
        is_collapsed_N = (busiest_N > COLLAPSED) & asked_N & (num_experts > self.choices)
        dead_NE = np.where(is_dead_NE, self.dead_NE + steps, 0)
        collapsed_N = np.where(is_collapsed_N, self.collapsed_N + steps, 0)
        now = dataclasses.replace(self, dead_NE=dead_NE, collapsed_N=collapsed_N)
        return now, (*now._collapses(self.collapsed_N), *now._deaths(self.dead_NE))

    @property
    def figures(self) -> Record:
        """dead_experts: how many are dead now, over all decisions. Nothing where alarms are off or there are no experts."""
        if not self.after_steps or not self.names:
            return {}
        return {"dead_experts": int((self.dead_NE >= self.after_steps).sum())}

    def _collapses(self, before_N: np.ndarray) -> list[str]:
        new = [self.names[n] for n in self._reached(self.collapsed_N, before_N).nonzero()[0]]
        if not new:
            return []
        some = "one expert" if self.choices == 1 else f"{self.choices} experts"
        return [
            f"routing has collapsed at {', '.join(new)}: {some} took over {COLLAPSED:.0%} of all choices for {self.after_steps} steps; the "
            "others learn nothing. Remedies: auxiliary losses (model.experts.auxiliary), a capacity, more noise, a lower optimizer.lr"
        ]

    def _deaths(self, before_NE: np.ndarray) -> list[str]:
        new_NE = self._reached(self.dead_NE, before_NE)
        parts = [
            f"{self.names[n]}: {', '.join(map(str, experts.nonzero()[0]))}"
            for n, experts in enumerate(new_NE)
            if experts.any()
        ]
        if not parts:
            return []
        return [
            f"dead experts at {'; '.join(parts)} (each took less than {DEAD:.0%} of an equal share for {self.after_steps} steps)"
        ]

    def _reached(self, now: np.ndarray, before: np.ndarray) -> np.ndarray:
        return (now >= self.after_steps) & (before < self.after_steps)
