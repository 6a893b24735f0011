"""What a decision tells besides what it does. Nothing is stored in a module, so recomputation counts nothing twice.

Legend: N decisions of a pass, T tokens, K choices, M modalities, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from data.batch import Modality
from model.layout import PassLayout
from model.moe.router import entropy
from model.moe.routing import TokenRouting
from model.moe.use import ExpertUse


@dataclasses.dataclass(frozen=True)
class RoutingReport:
    """use: of the experts, without gradient. losses: auxiliary losses by name, unweighted, with gradient."""

    use: ExpertUse
    losses: dict[str, Tensor]


Report = RoutingReport | TokenRouting
"""Of one decision; about tokens before it has been summed up."""


def summed_up(reports: Sequence[Report], layout: PassLayout) -> tuple[RoutingReport, ...]:
    """In their order: those of groups as they are, those of tokens all at once."""
    sums = iter(_of_tokens([report for report in reports if isinstance(report, TokenRouting)], layout))
    return tuple(next(sums) if isinstance(report, TokenRouting) else report for report in reports)


def _of_tokens(routings: Sequence[TokenRouting], layout: PassLayout) -> tuple[RoutingReport, ...]:
    """Float64, as sums over many tokens must stay exact counts."""
    if not routings:
        return ()
    ids_NTK = torch.stack([routing.expert_ids_TK for routing in routings])
    weights_NTK = torch.stack([routing.weights_TK.detach() for routing in routings])
    logits_NTE = torch.stack([routing.logits_TE for routing in routings])
    kept = [routing.kept_TK for routing in routings if routing.kept_TK is not None]
    kept_NTK = torch.stack(kept) if kept else torch.ones_like(weights_NTK)
    (decisions, _, choices), num_experts, kinds = ids_NTK.shape, logits_NTE.shape[-1], len(Modality)
    kind_NT = kinds * torch.arange(decisions, device=ids_NTK.device)[:, None] + layout.modality_T
    both_NTK2 = torch.stack([kept_NTK.double(), weights_NTK.double()], dim=-1)
    cell_NTK = ids_NTK + num_experts * kind_NT[..., None]
    sums_X2 = both_NTK2.new_zeros(decisions * kinds * num_experts, 2)
    sums_X2.index_add_(0, cell_NTK.flatten(), both_NTK2.flatten(0, 2))
    entropy_X = sums_X2.new_zeros(decisions * kinds)
    entropy_X.index_add_(0, kind_NT.flatten(), entropy(logits_NTE).double().flatten())
    taken_NME, weight_NME = sums_X2.view(decisions, kinds, num_experts, 2).unbind(-1)
    asked_M = layout.tokens_M * choices
    each = zip(taken_NME, weight_NME, entropy_X.view(decisions, kinds) * choices, routings, strict=True)
    return tuple(
        RoutingReport(ExpertUse(taken_ME, weight_ME, asked_M, entropy_M), routing.losses)
        for taken_ME, weight_ME, entropy_M, routing in each
    )
