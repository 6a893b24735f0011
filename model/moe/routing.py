"""Routing decisions and the pure functions that make and thin them.

Legend: T tokens, E experts, K choices of a token, G routing groups, C condition groups. All of it in fp32: a decision must
not depend on the precision of the layers around it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from data.movable import sent


@dataclasses.dataclass(frozen=True)
class TokenRouting:
    """Every token's experts.

    expert_ids_TK   int64, best first
    weights_TK      0 where the choice was dropped
    kept_TK         bool, False where the choice was dropped; None: none can have been
    logits_TE       of the gate, without noise and gradient
    losses          auxiliary losses by name, unweighted
    most_kept       so many can have been kept; None: all
    asked_TK        bool, False for what `random_second` left out; None: all were asked
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor | None
    logits_TE: Tensor
    losses: dict[str, Tensor]
    most_kept: int | None = None
    asked_TK: Tensor | None = None


def top_k(logits_XE: Tensor, k: int, renormalise: bool, selection_XE: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of any leading dimensions -> (expert_ids_XK, weights_XK), best first; ties go to the lowest expert id, on every device.

    `selection_XE` ranks the experts where that is not the logit itself (Gumbel noise selects, the clean probability weighs). With
    `renormalise` and k > 1 the probabilities are divided by their sum (papers.md 2.4), which is the softmax of the chosen logits; for
    k = 1 the probability itself is the weight, or the router would get no gradient.
    """
    ranked_XE = logits_XE if selection_XE is None else selection_XE
    ids_XK = torch.sort(ranked_XE, dim=-1, descending=True, stable=True).indices[..., :k]
    if renormalise and k > 1:
        return ids_XK, logits_XE.gather(-1, ids_XK).softmax(dim=-1)
    return ids_XK, probabilities(logits_XE, ids_XK)


def probabilities(logits_XE: Tensor, ids_XK: Tensor) -> Tensor:
    """[..., K] of these experts."""
    return logits_XE.softmax(dim=-1).gather(-1, ids_XK)


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
    priority_T: Tensor | None,
    slots_G: tuple[int, ...],
    num_experts: int,
    group_T: Tensor | None = None,
    asked_TK: Tensor | None = None,
) -> Tensor:
    """Which choices find a free slot, bool [T, K]: all first choices before all second ones, and inside one choice by
    falling priority (Batch Prioritised Routing, papers.md 3.4; without one in the order of the tokens).

    Each routing group has slots of its own. Choices that `asked_TK` leaves out take no slot and are not kept.
    """
    tokens, k = expert_ids_TK.shape
    groups = len(slots_G)
    key_TK = expert_ids_TK if group_T is None else expert_ids_TK + num_experts * group_T[:, None]
    if asked_TK is not None:
        key_TK = torch.where(asked_TK, key_TK, groups * num_experts)  # a queue of their own, without slots
    order_T = None if priority_T is None else torch.sort(priority_T, descending=True, stable=True).indices
    # Choice-major: first choices of all tokens, then second ones.
    queued_N = (key_TK if order_T is None else key_TK.index_select(0, order_T)).T.reshape(-1)
    # The place in its expert's queue: its rank among equal keys, which a stable sort keeps in order.
    sorted_N, by_key_N = torch.sort(queued_N, stable=True)
    numbers_N = torch.arange(queued_N.shape[0], device=queued_N.device)
    place_N = numbers_N - torch.searchsorted(sorted_N, sorted_N)  # from the first of its key
    if groups == 1:
        fits_N = place_N < slots_G[0]
    else:
        slots_X = sent(torch.from_numpy(np.repeat((*slots_G, 0), num_experts)), queued_N.device)
        fits_N = place_N < slots_X.index_select(0, sorted_N)
    if groups == 1 and asked_TK is not None:
        fits_N = fits_N & (sorted_N < num_experts)
    kept_KT = torch.empty_like(fits_N).index_copy_(0, by_key_N, fits_N).view(k, tokens)
    return (kept_KT if order_T is None else torch.empty_like(kept_KT).index_copy_(1, order_T, kept_KT)).T
