"""Routing decisions and the pure functions that make and thin them.

Legend: T tokens, E experts, K choices of a token, G groups. All of it in fp32: a decision must not depend on the
precision of the layers around it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TokenRouting:
    """Every token's experts: expert_ids_TK int64, weights_TK (0 where a choice was dropped), probs_TE before top-k."""

    expert_ids_TK: Tensor
    weights_TK: Tensor
    probs_TE: Tensor


@dataclasses.dataclass(frozen=True)
class GroupRouting:
    """Every group's experts: weights_GE, zero outside the top k."""

    weights_GE: Tensor


def top_k(probs_NE: Tensor, k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """-> (expert_ids_NK, weights_NK), best first; ties go to the lowest expert id, on every device.

    With `renormalise` and k > 1 the weights are divided by their sum (papers.md 2.4); for k = 1 the probability itself is the
    weight, or the router would get no gradient.
    """
    ids_NK = torch.sort(probs_NE, dim=-1, descending=True, stable=True).indices[:, :k]
    weights_NK = probs_NE.gather(1, ids_NK)
    if renormalise and k > 1:
        weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
    return ids_NK, weights_NK


def scatter_weights(ids_NK: Tensor, weights_NK: Tensor, num_experts: int) -> Tensor:
    """[N, K] choices -> [N, E] weights with zeros elsewhere; differentiable in the weights."""
    return weights_NK.new_zeros(ids_NK.shape[0], num_experts).scatter(1, ids_NK, weights_NK)


def capacity(num_tokens: int, k: int, factor: float, num_experts: int) -> int:
    """Slots of one expert: ceil(T k C / E), at least 1 and at most T (papers.md 3.3)."""
    return max(1, min(num_tokens, math.ceil(num_tokens * k * factor / num_experts)))


def kept_choices(expert_ids_TK: Tensor, priority_T: Tensor, slots: int, num_experts: int) -> Tensor:
    """Which choices find a free slot, bool [T, K]: all first choices before all second ones, and inside one choice by
    falling priority (Batch Prioritised Routing, papers.md 3.4; a constant priority gives the order of the tokens)."""
    num_tokens, k = expert_ids_TK.shape
    order_T = torch.sort(priority_T, descending=True, stable=True).indices
    ranked_KT = expert_ids_TK[order_T].T.reshape(-1)  # choice-major: first choices of all tokens, then second ones
    one_hot_NE = torch.nn.functional.one_hot(ranked_KT, num_experts)
    slot_N = (one_hot_NE.cumsum(0) - 1).gather(1, ranked_KT[:, None]).squeeze(1)
    kept_KT = (slot_N < slots).view(k, num_tokens)
    kept_TK = torch.empty_like(expert_ids_TK, dtype=torch.bool)
    kept_TK[order_T] = kept_KT.T
    return kept_TK
