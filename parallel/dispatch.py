"""Tokens to the ranks of their experts and back, over plain tensors.

    T tokens x K choices --sort by expert--> N copies --all-to-all--> R received rows, sorted by local expert
                         <--weighted sum---  N rows   <--all-to-all-- R results

Dropped choices (weight zero) are not sent. Zero rows for an expert, from a rank or in all are normal cases.
Legend: T tokens, K choices, N kept copies on this rank, R rows received, E experts, S expert ranks.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.collectives import Axis, all_to_all


@dataclasses.dataclass(frozen=True)
class DispatchPlan:
    """Who goes where: made once per decision, used by every linear of the pair.

    token_N, choice_N   the token and the choice of each copy, copies sorted by global expert id
    send_counts         rows to each expert rank; receive_counts: rows from each
    arrival_R           order that sorts the received rows by local expert
    counts              rows of each local expert
    """

    axis: Axis
    num_tokens: int
    token_N: Tensor
    choice_N: Tensor
    send_counts: list[int]
    receive_counts: list[int]
    arrival_R: Tensor
    counts: list[int]


def plan_dispatch(expert_ids_TK: Tensor, kept_TK: Tensor, num_experts: int, axis: Axis) -> DispatchPlan:
    """Agree with the other expert ranks on how many rows go where (one small all-to-all of counts)."""
    token_N, choice_N = kept_TK.nonzero(as_tuple=True)
    expert_N = expert_ids_TK[token_N, choice_N]
    order_N = torch.sort(expert_N, stable=True).indices
    counts_E = torch.bincount(expert_N, minlength=num_experts)
    local = num_experts // axis.size
    sent_SE = counts_E.view(axis.size, local)
    received_SE = sent_SE
    if axis.size > 1:
        received_SE = torch.empty_like(sent_SE)
        dist.all_to_all_single(received_SE, sent_SE.contiguous(), group=axis.group)
    # Rows arrive rank by rank, and inside a rank by expert: bring those of one expert together.
    expert_R = torch.arange(local, device=counts_E.device).repeat(axis.size).repeat_interleave(received_SE.reshape(-1))
    return DispatchPlan(
        axis=axis,
        num_tokens=expert_ids_TK.shape[0],
        token_N=token_N[order_N],
        choice_N=choice_N[order_N],
        send_counts=sent_SE.sum(1).tolist(),
        receive_counts=received_SE.sum(1).tolist(),
        arrival_R=torch.sort(expert_R, stable=True).indices,
        counts=received_SE.sum(0).tolist(),
    )


def dispatch(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, D] -> [R, D]: the rows for this rank's experts, sorted by local expert."""
    received_RD = all_to_all(x_TD[plan.token_N], plan.send_counts, plan.receive_counts, plan.axis)
    return received_RD[plan.arrival_R]


def combine(y_RF: Tensor, weights_TK: Tensor, plan: DispatchPlan) -> Tensor:
    """[R, F] -> [T, F]: every token the weighted sum of its experts' results; zero if all its choices were dropped."""
    in_arrival_order_RF = torch.empty_like(y_RF).index_copy(0, plan.arrival_R, y_RF)
    y_NF = all_to_all(in_arrival_order_RF, plan.receive_counts, plan.send_counts, plan.axis)
    weighted_NF = y_NF * weights_TK[plan.token_N, plan.choice_N].to(y_NF.dtype).unsqueeze(-1)
    return y_RF.new_zeros(plan.num_tokens, y_RF.shape[-1]).index_add(0, plan.token_N, weighted_NF)
