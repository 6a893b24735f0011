"""Tokens to the ranks of their experts and back, over plain tensors.

    T tokens x K choices --sort by expert--> N copies --all-to-all--> R received rows, in blocks by (rank, local expert)
                         <-------sum-------  N rows   <--all-to-all-- R results

Dropped choices are not sent. Zero rows for an expert, from a rank or in all are normal cases.
Legend: T tokens of a pass, K choices, N kept copies on this rank, R rows received,
E experts, S expert ranks.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from parallel.collectives import Axis, all_to_all, exchanged

Blocks = tuple[tuple[int, int, int], ...]
"""(first row, row after the last, number of the expert); in order and without gaps."""


@dataclasses.dataclass(frozen=True)
class DispatchPlan:
    """Who goes where: made once per decision, used by every linear of the pair.

    token_N, choice_N   the token and the choice of each copy, copies sorted by global expert id
    copies_TK           the copy of each token's choice, 0 where there is none
    missing_K           for each choice the tokens that have no copy, as it was dropped
    send_counts         rows to each expert rank; receive_counts: rows from each
    blocks              (first row, row after the last, local expert) of the received rows, as they arrive
    """

    axis: Axis
    num_tokens: int
    num_choices: int
    token_N: Tensor
    choice_N: Tensor
    copies_TK: Tensor
    missing_K: tuple[Tensor, ...]
    send_counts: list[int]
    receive_counts: list[int]
    blocks: Blocks


def plan_dispatch(expert_ids_TK: Tensor, kept_TK: Tensor, num_experts: int, axis: Axis) -> DispatchPlan:
    """Agree with the other expert ranks on how many rows go where (one small all-to-all of counts)."""
    num_tokens, num_choices = expert_ids_TK.shape
    token_N, choice_N = kept_TK.nonzero(as_tuple=True)
    expert_N = expert_ids_TK[token_N, choice_N]
    order_N = torch.sort(expert_N, stable=True).indices
    token_N, choice_N = token_N[order_N], choice_N[order_N]
    counts_E = torch.bincount(expert_N, minlength=num_experts)
    local = num_experts // axis.size
    sent_SE = counts_E.view(axis.size, local)
    received_SE = sent_SE
    if axis.size > 1:
        one_each = [1] * axis.size
        received_SE = exchanged(sent_SE, one_each, one_each, axis)
    copies_TK = torch.full((num_tokens, num_choices), -1, device=token_N.device)
    copies_TK[token_N, choice_N] = torch.arange(token_N.shape[0], device=token_N.device)
    complete = token_N.shape[0] == num_tokens * num_choices
    missing_K = () if complete else tuple((copies_TK[:, k] < 0).nonzero().squeeze(1) for k in range(num_choices))
    return DispatchPlan(
        axis=axis,
        num_tokens=num_tokens,
        num_choices=num_choices,
        token_N=token_N,
        choice_N=choice_N,
        copies_TK=copies_TK.clamp_(min=0),
        missing_K=missing_K,
        send_counts=sent_SE.sum(1).tolist(),
        receive_counts=received_SE.sum(1).tolist(),
        blocks=_blocks(received_SE.flatten().tolist(), local),
    )


def dispatch(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, D] -> [R, D]: the rows for this rank's experts, in the plan's blocks."""
    return _exchanged(_Spread.apply(x_TD, plan), plan)


def dispatch_weights(weights_TK: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, K] -> [R]: the weights of the received rows."""
    return _exchanged(weights_TK[plan.token_N, plan.choice_N], plan)


def combine(y_RF: Tensor, plan: DispatchPlan) -> Tensor:
    """[R, F] -> [T, F]: every token the sum of its experts' results; zero where all choices were dropped."""
    return _Collect.apply(all_to_all(y_RF, plan.receive_counts, plan.send_counts, plan.axis), plan)


def _exchanged(x_N: Tensor, plan: DispatchPlan) -> Tensor:
    return all_to_all(x_N, plan.send_counts, plan.receive_counts, plan.axis)


def _blocks(counts: list[int], experts: int) -> Blocks:
    """Rows arrive rank by rank, and inside a rank by expert."""
    ends = list(itertools.accumulate(counts))
    starts = [0, *ends[:-1]]
    return tuple((start, end, index % experts) for index, (start, end) in enumerate(zip(starts, ends, strict=True)))


class _Spread(torch.autograd.Function):
    """Tokens to copies; its backward sums copies to tokens."""

    @staticmethod
    def forward(ctx, x_TD, plan):
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_N)

    @staticmethod
    def backward(ctx, grad_ND):
        return _collected(grad_ND, ctx.plan), None


class _Collect(torch.autograd.Function):
    """Copies to tokens, summed; its backward spreads."""

    @staticmethod
    def forward(ctx, y_NF, plan):
        ctx.plan = plan
        return _collected(y_NF, plan)

    @staticmethod
    def backward(ctx, grad_TF):
        return grad_TF.index_select(0, ctx.plan.token_N), None


def _collected(y_NF: Tensor, plan: DispatchPlan) -> Tensor:
    """Reading rows in another order is faster than adding into them."""
    if not len(y_NF):
        return y_NF.new_zeros(plan.num_tokens, y_NF.shape[1])
    total_TF = None
    for choice in range(plan.num_choices):
        part_TF = y_NF.index_select(0, plan.copies_TK[:, choice])
        if plan.missing_K:
            part_TF.index_fill_(0, plan.missing_K[choice], 0.0)
        total_TF = part_TF if total_TF is None else total_TF.add_(part_TF)
    assert total_TF is not None
    return total_TF
