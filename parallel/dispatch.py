"""Tokens to the ranks of their experts and back, over plain tensors, as a plan says (parallel/dispatch_plan.py).

    T tokens --copies, by expert--> N rows --all-to-all, sort by expert--> R received rows, in groups of an expert
             <--------sum---------- N rows <---------all-to-all----------- R results

Legend: T tokens of a pass, K choices, N copies on this rank, R rows received, D, F widths.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from parallel.collectives import Flight, all_to_all
from parallel.dispatch_plan import DispatchPlan


def dispatch(x_TD: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, D] -> [R, D]: the rows for this rank's experts, sorted by expert."""
    return _sorted(_exchanged(_Spread.apply(x_TD, plan), plan), plan)


def dispatch_weights(weights_TK: Tensor, plan: DispatchPlan) -> Tensor:
    """[T, K] -> [R]: the weights of the received rows."""
    weights_N1 = _Picked.apply(weights_TK, plan)
    return _sorted(_exchanged(weights_N1, plan), plan).squeeze(1)


def combine(y_RF: Tensor, plan: DispatchPlan) -> Tensor:
    """[R, F] -> [T, F]: every token the sum of its experts' results; zero where all choices were dropped."""
    return _Collect.apply(all_to_all(_unsorted(y_RF, plan), plan.receive_counts, plan.send_counts, plan.axis), plan)


def there_and_back(x_TD: Tensor, plans: tuple[DispatchPlan, ...], compute: Callable[[Tensor, int], Tensor]) -> Tensor:
    """[T, D] -> [T, F], as dispatch, compute and combine: rows of one part travel while those of another are computed, and so do their
    gradients. compute: the rows of a part, and its number -> the results."""
    there, back = [], []
    for x_tD, plan in zip(x_TD.split([len(plan.firsts_T) for plan in plans]), plans, strict=True):
        flight = Flight(plan.send_counts, plan.receive_counts, plan.axis)
        there.append((flight, flight.depart(_Spread.apply(x_tD, plan))))
    for number, ((flight, rows_RD), plan) in enumerate(zip(there, plans, strict=True)):
        y_RF = compute(_sorted(flight.land(rows_RD), plan), number)
        flight = Flight(plan.receive_counts, plan.send_counts, plan.axis)
        back.append((flight, flight.depart(_unsorted(y_RF, plan))))
    parts = zip(back, plans, strict=True)
    return torch.cat([_Collect.apply(flight.land(y_NF), plan) for (flight, y_NF), plan in parts])


def _exchanged(x_N: Tensor, plan: DispatchPlan) -> Tensor:
    return all_to_all(x_N, plan.send_counts, plan.receive_counts, plan.axis)


def _sorted(x_RF: Tensor, plan: DispatchPlan) -> Tensor:
    return x_RF if plan.arrival_R is None else _Permuted.apply(x_RF, plan.arrival_R, False)


def _unsorted(y_RF: Tensor, plan: DispatchPlan) -> Tensor:
    return y_RF if plan.arrival_R is None else _Permuted.apply(y_RF, plan.arrival_R, True)


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


class _Picked(torch.autograd.Function):
    """[T, K] to [N, 1], a number for each copy."""

    @staticmethod
    def forward(ctx, weights_TK, plan):
        ctx.plan = plan
        weights_N = weights_TK.flatten().index_select(0, plan.pair_N)
        return (weights_N if plan.is_filled_N is None else weights_N.mul_(plan.is_filled_N))[:, None]

    @staticmethod
    def backward(ctx, grad_N1):
        plan = ctx.plan
        if not len(grad_N1):
            return grad_N1.new_zeros(plan.copies_TK.shape), None
        grad_TK = grad_N1.squeeze(1).index_select(0, plan.copies_TK.flatten()).view(plan.copies_TK.shape)
        return grad_TK if plan.dropped_TK is None else grad_TK.masked_fill_(plan.dropped_TK, 0.0), None


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
    """Reading rows in another order is faster than adding into them, and a bag of embeddings is that in one pass."""
    if not len(y_NF):
        return y_NF.new_zeros(plan.copies_TK.shape[0], y_NF.shape[1])
    pairs = plan.copies_TK.flatten()
    if plan.num_choices > 1:
        share = None if plan.kept_TK is None else plan.kept_TK.flatten().to(y_NF.dtype)
        # Detached, or torch would keep what a backward pass of its own needs.
        return embedding_bag(pairs, y_NF.detach(), plan.firsts_T, mode="sum", per_sample_weights=share)
    y_TF = y_NF.index_select(0, pairs)
    return y_TF if plan.dropped_TK is None else y_TF.masked_fill_(plan.dropped_TK, 0.0)
