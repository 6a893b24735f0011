"""What a decision tells besides what it does. Nothing is stored in a module, so recomputation counts nothing twice.

Legend: N decisions of a pass, T tokens, K choices, M modalities, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from data.batch import Modality
from model.config import ModelConfig
from model.layout import PassLayout
from model.moe.router import entropy
from model.moe.routing import TokenRouting
from model.moe.use import ExpertUse, packed_width, unpacked


@dataclasses.dataclass(frozen=True)
class RoutingReport:
    """use: of the experts, without gradient. losses: auxiliary losses by name, unweighted, with gradient."""

    use: ExpertUse
    losses: dict[str, Tensor]


def nothing_routed(config: ModelConfig, device: torch.device) -> tuple[RoutingReport, ...]:
    """Of each decision of a tower that has nothing to do in a pass."""
    use = unpacked(torch.zeros(len(Modality), packed_width(config.experts.num_experts), device=device))
    own = dataclasses.replace(config, text_tower=None)  # the first tower's options name the other one
    return (RoutingReport(use, {}),) * own.num_decisions


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
    unasked_NM = _unasked(routings, kind_NT, kinds)
    asked_NM = layout.tokens_M * choices - unasked_NM
    entropy_NM = entropy_X.view(decisions, kinds) * choices
    each = zip(taken_NME, weight_NME, asked_NM, unasked_NM, entropy_NM, strict=True)
    return tuple(RoutingReport(ExpertUse(*use), routing.losses) for use, routing in zip(each, routings, strict=True))


def _unasked(routings: Sequence[TokenRouting], kind_NT: Tensor, kinds: int) -> Tensor:
    """[N, M]: choices that `random_second` left out."""
    found_X = kind_NT.new_zeros(len(routings) * kinds, dtype=torch.float64)
    asked = [routing.asked_TK for routing in routings if routing.asked_TK is not None]
    if asked:
        unasked_NT = (~torch.stack(asked)).sum(dim=2)
        found_X.index_add_(0, kind_NT.flatten(), unasked_NT.double().flatten())
    return found_X.view(len(routings), kinds)
