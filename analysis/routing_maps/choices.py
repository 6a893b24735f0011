"""What each decision of a pass chose, read off the routers as they decide.

Legend: B rows, L positions (<SPE> first), T valid tokens of all sequences, C condition groups of all sequences, K choices, E experts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from model.moe.layer import DispatchPath, MergePath
from model.moe.router import Layouts
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

    def on_groups(router: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        found.append(of_groups(outputs[0], inputs[0]))

    def on_tokens(router: Any, inputs: tuple, routing: TokenRouting) -> None:
        found.append(of_tokens(routing, inputs[1]))

    hooks = []
    for module in objective.modules():
        if isinstance(module, MergePath | DispatchPath):
            hook = on_groups if isinstance(module, MergePath) else on_tokens
            hooks.append(module.router.register_forward_hook(hook))
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def of_groups(weights_CE: Tensor, layouts: Layouts) -> Choice:
    """All tokens of a group have its first expert."""
    weight_C, expert_C = weights_CE.max(dim=1)
    experts, weights, first = [], [], 0
    for layout in layouts:
        group_L = torch.cat([torch.full((span.end - span.start,), first + span.group) for span in layout.spans])
        group_L = group_L.to(expert_C.device)
        experts.append(torch.where(layout.valid_BL, expert_C[group_L], NONE))
        weights.append(torch.where(layout.valid_BL, weight_C[group_L], 0.0))
        first += len(layout.modality_G)
    return Choice(tuple(experts), tuple(weights))


def of_tokens(routing: TokenRouting, layouts: Layouts) -> Choice:
    """Valid tokens of all sequences stand one after another."""
    counts = [int(layout.valid_BL.sum()) for layout in layouts]
    expert_T = torch.where(routing.kept_TK[:, 0], routing.expert_ids_TK[:, 0], NONE)
    experts, weights = [], []
    parts = zip(layouts, expert_T.split(counts), routing.weights_TK[:, 0].split(counts), strict=True)
    for layout, expert_t, weight_t in parts:
        experts.append(
            torch.full_like(layout.valid_BL, NONE, dtype=torch.long).masked_scatter(layout.valid_BL, expert_t)
        )
        empty = torch.zeros_like(layout.valid_BL, dtype=weight_t.dtype)
        weights.append(empty.masked_scatter(layout.valid_BL, weight_t))
    return Choice(tuple(experts), tuple(weights))
