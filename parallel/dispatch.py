"""Tokens to the ranks of their experts and back, over plain tensors.

    P places x K choices --sort by expert--> N copies --all-to-all--> R received rows, in blocks by (rank, local expert)
                         <-------sum-------  N rows   <--all-to-all-- R results

Dropped choices and pads are not sent. Zero rows for an expert, from a rank or in all are normal cases.
Legend: P places (all positions of a pass, pads too), T valid tokens, K choices, N kept copies on this rank, R rows received,
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
    place_N             the place of each copy
    copies_PK           the copy of each place's choice, 0 where there is none
    missing_K           for each choice the places that have no copy: dropped, or pads
    send_counts         rows to each expert rank; receive_counts: rows from each
    blocks              (first row, row after the last, local expert) of the received rows, as they arrive
    """

    axis: Axis
    num_places: int
    num_choices: int
    token_N: Tensor
    choice_N: Tensor
    place_N: Tensor
    copies_PK: Tensor
    missing_K: tuple[Tensor, ...]
    send_counts: list[int]
    receive_counts: list[int]
    blocks: Blocks


def plan_dispatch(
    expert_ids_TK: Tensor,
    kept_TK: Tensor,
    num_experts: int,
    axis: Axis,
    place_T: Tensor | None = None,
    num_places: int | None = None,
) -> DispatchPlan:
    """Agree with the other expert ranks on how many rows go where (one small all-to-all of counts).

    place_T: where each token stands among `num_places` places; None: there are no pads.
    """
    num_tokens, num_choices = expert_ids_TK.shape
    if num_places is None:
        num_places = num_tokens
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
    place_N = token_N if place_T is None else place_T[token_N]
    copies_PK = torch.full((num_places, num_choices), -1, device=token_N.device)
    copies_PK[place_N, choice_N] = torch.arange(token_N.shape[0], device=token_N.device)
    complete = token_N.shape[0] == num_places * num_choices
    missing_K = () if complete else tuple((copies_PK[:, k] < 0).nonzero().squeeze(1) for k in range(num_choices))
    return DispatchPlan(
        axis=axis,
        num_places=num_places,
        num_choices=num_choices,
        token_N=token_N,
        choice_N=choice_N,
        place_N=place_N,
        copies_PK=copies_PK.clamp_(min=0),
        missing_K=missing_K,
        send_counts=sent_SE.sum(1).tolist(),
        receive_counts=received_SE.sum(1).tolist(),
        blocks=_blocks(received_SE.flatten().tolist(), local),
    )


def dispatch(x_PD: Tensor, plan: DispatchPlan) -> Tensor:
    """[P, D] -> [R, D]: the rows for this rank's experts, in the plan's blocks."""
    return _exchanged(_Spread.apply(x_PD, plan), plan)


def dispatch_weights(weights_TK: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, K] -> [R]: the weights of the received rows."""
    return _exchanged(weights_TK[plan.token_N, plan.choice_N], plan)


def combine(y_RF: Tensor, plan: DispatchPlan) -> Tensor:
    """[R, F] -> [P, F]: every place the sum of its experts' results; zero for a pad and where all choices were dropped."""
    return _Collect.apply(all_to_all(y_RF, plan.receive_counts, plan.send_counts, plan.axis), plan)


def _exchanged(x_N: Tensor, plan: DispatchPlan) -> Tensor:
    return all_to_all(x_N, plan.send_counts, plan.receive_counts, plan.axis)


def _blocks(counts: list[int], experts: int) -> Blocks:
    """Rows arrive rank by rank, and inside a rank by expert."""
    ends = list(itertools.accumulate(counts))
    starts = [0, *ends[:-1]]
    return tuple((start, end, index % experts) for index, (start, end) in enumerate(zip(starts, ends, strict=True)))


class _Spread(torch.autograd.Function):
    """Places to copies; its backward sums copies to places."""

    @staticmethod
    def forward(ctx, x_PD, plan):
        ctx.plan = plan
        return x_PD.index_select(0, plan.place_N)

    @staticmethod
    def backward(ctx, grad_ND):
        return _collected(grad_ND, ctx.plan), None


class _Collect(torch.autograd.Function):
    """Copies to places, summed; its backward spreads."""

    @staticmethod
    def forward(ctx, y_NF, plan):
        ctx.plan = plan
        return _collected(y_NF, plan)

    @staticmethod
    def backward(ctx, grad_PF):
        return grad_PF.index_select(0, ctx.plan.place_N), None


def _collected(y_NF: Tensor, plan: DispatchPlan) -> Tensor:
    """Reading rows in another order is faster than adding into them."""
    if not len(y_NF):
        return y_NF.new_zeros(plan.num_places, y_NF.shape[1])
    total_PF = None
    for choice in range(plan.num_choices):
        part_PF = y_NF.index_select(0, plan.copies_PK[:, choice])
        if plan.missing_K:
            part_PF.index_fill_(0, plan.missing_K[choice], 0.0)
        total_PF = part_PF if total_PF is None else total_PF.add_(part_PF)
    assert total_PF is not None
    return total_PF
