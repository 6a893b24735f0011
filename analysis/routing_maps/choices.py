"""What each decision of a pass chose, read off the routers as they decide.

Legend: B rows, L places (<SPE> first), T tokens of all sequences, C condition groups of all sequences, K choices, E experts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from model.layout import PassLayout
from model.moe.layer import DispatchPath, MergePath
from model.moe.routing import TokenRouting
from model.objective import Objective

NONE = -1
"""In place of an expert: of pads, and of tokens whose first choice had no free slot."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Of one decision: the first expert of every position of each sequence, int64 [B, L], and its gate weight [B, L]."""

    experts: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


@contextlib.contextmanager
def recorded(objective: Objective) -> Iterator[list[Choice]]:
    """Within it each pass adds its decisions to the list, in the order of `run.metrics.expert_use.decision_names`."""
    found: list[Choice] = []

    def on_groups(path: Any, inputs: tuple, decision: Any) -> None:
        _, layout, gates = inputs
        found.append(of_groups(gates.weights_CE, layout))

    def on_tokens(router: Any, inputs: tuple, routing: TokenRouting) -> None:
        found.append(of_tokens(routing, inputs[1]))

    hooks = []
    for module in objective.modules():
        if isinstance(module, MergePath | DispatchPath):
            merges = isinstance(module, MergePath)
            hooks.append(
                (module if merges else module.router).register_forward_hook(on_groups if merges else on_tokens)
            )
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def of_groups(weights_CE: Tensor, layout: PassLayout) -> Choice:
    """All tokens of a group have its first expert."""
    weight_C, expert_C = weights_CE.max(dim=1)
    group_T = torch.cat([s.group_T + first for s, first in zip(layout.sequences, layout.first_groups, strict=True)])
    return _placed(expert_C[group_T], weight_C[group_T], layout)


def of_tokens(routing: TokenRouting, layout: PassLayout) -> Choice:
    expert_T = routing.expert_ids_TK[:, 0]
    if routing.kept_TK is not None:
        expert_T = torch.where(routing.kept_TK[:, 0], expert_T, NONE)
    return _placed(expert_T, routing.weights_TK[:, 0], layout)


def _placed(expert_T: Tensor, weight_T: Tensor, layout: PassLayout) -> Choice:
    parts = zip(layout.each(expert_T[:, None]), layout.each(weight_T[:, None]), layout.sequences, strict=True)
    experts, weights = [], []
    for expert_t1, weight_t1, sequence in parts:
        experts.append(sequence.placed(expert_t1 - NONE).squeeze(-1) + NONE)
        weights.append(sequence.placed(weight_t1).squeeze(-1))
    return Choice(tuple(experts), tuple(weights))
