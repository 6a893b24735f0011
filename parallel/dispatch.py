"""Tokens to the ranks of their experts and back, over plain tensors.

    T tokens x K choices --sort by expert--> N copies --all-to-all, sort by expert--> R received rows, in groups of an expert
                         <-------sum-------  N rows   <---------all-to-all---------- R results

Dropped choices are not sent to other ranks. On one rank nothing is counted on the host, which would have to wait for a device: all copies
that could be kept have a row, and those that were dropped come last, with a weight of zero. Zero rows for an expert, from a rank or in all
are normal cases.
Legend: T tokens of a pass, K choices, N copies on this rank, R rows received, E experts, e local experts, S expert ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch
from torch import Tensor

from parallel.collectives import Axis, all_to_all, exchanged

Blocks = tuple[tuple[int, int, int], ...]
"""(first row, row after the last, number of the expert); in order and without gaps."""


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Which rows belong to which expert: those of expert e end before row ends_e[e], int32, and begin where the last one's end. Rows that
    follow, up to `rows`, are of none: their results are of no use, but must be finite."""

    ends_e: Tensor
    rows: int

    @functools.cached_property
    def covering_ends_e(self) -> Tensor:
        """The last expert has what is left."""
        ends_e = self.ends_e.clone()
        ends_e[-1:] = self.rows
        return ends_e

    @functools.cached_property
    def blocks(self) -> Blocks:
        """On the host: a device is waited for."""
        ends = self.ends_e.tolist()
        return tuple((start, end, index) for index, (start, end) in enumerate(itertools.pairwise([0, *ends])))

    @functools.cached_property
    def expert_R(self) -> Tensor:
        numbers_R = torch.arange(self.rows, device=self.ends_e.device, dtype=torch.int32)
        return torch.searchsorted(self.covering_ends_e, numbers_R, right=True)


@dataclasses.dataclass(frozen=True)
class DispatchPlan:
    """Who goes where: made once per decision, used by every linear of the pair.

    token_N, choice_N   the token and the choice of each copy, copies sorted by global expert id
    copies_TK           the copy of each token's choice, any where there is none
    dropped_TK          choices without a copy; None where that cannot be
    send_counts         rows to each expert rank; receive_counts: rows from each
    groups              the received rows, sorted by local expert
    arrival_R           the place of each among the rows as they arrive; None where they arrive sorted
    """

    axis: Axis
    num_choices: int
    token_N: Tensor
    choice_N: Tensor
    copies_TK: Tensor
    dropped_TK: Tensor | None
    send_counts: list[int]
    receive_counts: list[int]
    groups: RowGroups
    arrival_R: Tensor | None


def plan_dispatch(
    expert_ids_TK: Tensor, kept_TK: Tensor | None, num_experts: int, axis: Axis, most_kept: int | None = None
) -> DispatchPlan:
    """kept_TK: None where no choice was dropped. most_kept: so many can be kept at most. Between ranks, agrees with the others on how many
    rows go where (one small all-to-all of counts, for which the host waits)."""
    num_tokens, num_choices = expert_ids_TK.shape
    key_TK = expert_ids_TK if kept_TK is None else torch.where(kept_TK, expert_ids_TK, num_experts)
    key_N, order_N = torch.sort(key_TK.flatten(), stable=True)
    numbers_N = torch.arange(len(order_N), device=order_N.device)
    copies_TK = torch.empty_like(order_N).index_copy_(0, order_N, numbers_N).view(num_tokens, num_choices)
    ends_E = torch.searchsorted(key_N, torch.arange(num_experts, device=key_N.device), right=True)
    local = num_experts // axis.size
    if axis.size == 1:
        count = min(len(order_N), most_kept if most_kept is not None else len(order_N))
        send_counts = receive_counts = [count]
        groups, arrival_R = RowGroups(ends_E.to(torch.int32), count), None
    else:
        sent_SE = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).view(axis.size, local)
        one_each = [1] * axis.size
        received_Se = exchanged(sent_SE, one_each, one_each, axis)
        both = torch.cat([sent_SE.sum(1), received_Se.flatten()]).tolist()
        send_counts, received = both[: axis.size], both[axis.size :]
        receive_counts = [sum(received[rank * local : (rank + 1) * local]) for rank in range(axis.size)]
        count, rows = sum(send_counts), sum(receive_counts)
        ends_e = received_Se.sum(0).cumsum(0).to(torch.int32)
        groups, arrival_R = RowGroups(ends_e, rows), None
        if local > 1:
            expert_X = torch.arange(local, device=key_N.device).repeat(axis.size)
            expert_R = expert_X.repeat_interleave(received_Se.flatten(), output_size=rows)
            arrival_R = torch.sort(expert_R, stable=True).indices
    order_N = order_N[:count]
    return DispatchPlan(
        axis=axis,
        num_choices=num_choices,
        token_N=order_N.div(num_choices, rounding_mode="floor"),
        choice_N=order_N % num_choices,
        copies_TK=copies_TK.clamp_(max=max(0, count - 1)),
        dropped_TK=None if kept_TK is None else ~kept_TK,
        send_counts=send_counts,
        receive_counts=receive_counts,
        groups=groups,
        arrival_R=arrival_R,
    )


def dispatch(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, D] -> [R, D]: the rows for this rank's experts, sorted by expert."""
    return _sorted(_exchanged(_Spread.apply(x_TD, plan), plan), plan)


def dispatch_weights(weights_TK: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, K] -> [R]: the weights of the received rows."""
    weights_R1 = _exchanged(weights_TK[plan.token_N, plan.choice_N][:, None], plan)
    return _sorted(weights_R1, plan).squeeze(1)


def combine(y_RF: Tensor, plan: DispatchPlan) -> Tensor:
    """[R, F] -> [T, F]: every token the sum of its experts' results; zero where all choices were dropped."""
    arrived = y_RF if plan.arrival_R is None else _Permuted.apply(y_RF, plan.arrival_R, True)
    return _Collect.apply(all_to_all(arrived, plan.receive_counts, plan.send_counts, plan.axis), plan)


def _exchanged(x_N: Tensor, plan: DispatchPlan) -> Tensor:
    return all_to_all(x_N, plan.send_counts, plan.receive_counts, plan.axis)


def _sorted(x_RF: Tensor, plan: DispatchPlan) -> Tensor:
    return x_RF if plan.arrival_R is None else _Permuted.apply(x_RF, plan.arrival_R, False)


class _Permuted(torch.autograd.Function):
    """Rows in another order: taken from `places`, or brought back to them."""

    @staticmethod
    def forward(ctx, x_RF, place_R, back):
        ctx.save_for_backward(place_R)
        ctx.back = back
        return _permuted(x_RF, place_R, back)

    @staticmethod
    def backward(ctx, grad_RF):
        return _permuted(grad_RF, ctx.saved_tensors[0], not ctx.back), None, None


def _permuted(x_RF: Tensor, place_R: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x_RF).index_copy_(0, place_R, x_RF) if back else x_RF.index_select(0, place_R)


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
        return y_NF.new_zeros(plan.copies_TK.shape[0], y_NF.shape[1])
    total_TF = None
    for choice in range(plan.num_choices):
        part_TF = y_NF.index_select(0, plan.copies_TK[:, choice])
        if plan.dropped_TK is not None:
            part_TF.masked_fill_(plan.dropped_TK[:, choice, None], 0.0)
        total_TF = part_TF if total_TF is None else total_TF.add_(part_TF)
    assert total_TF is not None
    return total_TF
