"""Routing decisions and the pure functions that make and thin them.

Legend: T tokens, E experts, K choices of a token, G routing groups, C condition groups. All of it in fp32: a decision must
not depend on the precision of the layers around it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TokenRouting:
    """Every token's experts.

    expert_ids_TK   int64, best first
    weights_TK      0 where the choice was dropped
    kept_TK         bool, False where the choice was dropped
    entropy_T       of the gate's distribution without noise, in nats, without gradient
    losses          auxiliary losses by name, unweighted
    loss            their weighted sum
    may_drop        whether a choice can have been dropped
    most_kept       so many can have been kept; None: all
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor
    entropy_T: Tensor
    losses: dict[str, Tensor]
    loss: Tensor
    may_drop: bool = True
    most_kept: int | None = None


def top_k(probs_XE: Tensor, k: int, renormalise: bool, selection_XE: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of any leading dimensions -> (expert_ids_XK, weights_XK), best first; ties go to the lowest expert id, on every device.

    `selection_XE` ranks the experts where that is not the probability itself (Gumbel noise selects, the clean probability
    weighs). With `renormalise` and k > 1 the weights are divided by their sum (papers.md 2.4); for k = 1 the probability
    itself is the weight, or the router would get no gradient.
    """
    ranked_XE = probs_XE if selection_XE is None else selection_XE
    ids_XK = torch.sort(ranked_XE, dim=-1, descending=True, stable=True).indices[..., :k]
    weights_XK = probs_XE.gather(-1, ids_XK)
    if renormalise and k > 1:
        weights_XK = weights_XK / weights_XK.sum(dim=-1, keepdim=True)
    return ids_XK, weights_XK


def scatter_weights(ids_XK: Tensor, weights_XK: Tensor, num_experts: int) -> Tensor:
    """[..., K] choices -> [..., E] weights with zeros elsewhere; differentiable in the weights."""
    return weights_XK.new_zeros(*ids_XK.shape[:-1], num_experts).scatter(-1, ids_XK, weights_XK)


def capacity(tokens: int, k: int, factor: float, num_experts: int, rounding: str = "ceil", multiple: int = 1) -> int:
    """Slots of one expert for the tokens of a routing group: T k C / E rounded, raised to a multiple; at least 1 and at most
    T, which none can exceed (papers.md 3.3; V-MoE's code: ceil and multiples of 4, its paper: round)."""
    exact = tokens * k * factor / num_experts
    # A hair below, so that 1.05 * 20 asks for 21 slots and not for 22.
    slots = math.ceil(exact - 1e-9) if rounding == "ceil" else math.floor(exact + 0.5)
    return max(1, min(math.ceil(slots / multiple) * multiple, tokens))


def kept_choices(
    expert_ids_TK: Tensor,
    priority_T: Tensor,
    slots_G: tuple[int, ...],
    num_experts: int,
    group_T: Tensor | None = None,
    asked_TK: Tensor | None = None,
) -> Tensor:
    """Which choices find a free slot, bool [T, K]: all first choices before all second ones, and inside one choice by
    falling priority (Batch Prioritised Routing, papers.md 3.4; a constant priority gives the order of the tokens).

    Each routing group has slots of its own. Choices that `asked_TK` leaves out take no slot and are not kept.
    """
    _, k = expert_ids_TK.shape
    order_T = torch.sort(priority_T, descending=True, stable=True).indices
    groups = len(slots_G)
    key_TK = expert_ids_TK if group_T is None else expert_ids_TK + num_experts * group_T[:, None]
    if asked_TK is not None:
        key_TK = torch.where(asked_TK, key_TK, groups * num_experts)  # a queue of their own, without slots
    queued_N = key_TK[order_T].T.reshape(-1)  # choice-major: first choices of all tokens, then second ones
    # The place in its expert's queue: its rank among equal keys, which a stable sort keeps in order.
    sorted_N, by_key_N = torch.sort(queued_N, stable=True)
    numbers_N = torch.arange(queued_N.shape[0], device=queued_N.device)
    place_N = numbers_N - torch.searchsorted(sorted_N, sorted_N)  # from the first of its key
    slots_X = torch.cat([queued_N.new_full((num_experts,), slots) for slots in slots_G] + [queued_N.new_zeros(1)])
    kept_N = torch.empty_like(sorted_N, dtype=torch.bool)
    kept_N[by_key_N] = place_N < slots_X[sorted_N]
    kept_TK = torch.empty_like(expert_ids_TK, dtype=torch.bool)
    kept_TK[order_T] = kept_N.view(k, -1).T
    return kept_TK
