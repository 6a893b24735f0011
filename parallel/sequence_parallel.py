"""Rows cut over the ranks of an axis: Megatron's sequence parallelism on flattened tokens.

    whole [N, D]        --cut_rows-->     part [P, D]    backward: all-gather
    part [P, D]         --gather_rows-->  whole [N, D]   backward: reduce-scatter of the ranks' partial gradients
    partial sums [N, D] --sum_rows-->     part [P, D]    backward: all-gather

P = ceil(N / R) on each of R ranks; what is missing in the last parts is filled with zeros. megatron-core's own mappings make
their buffers on a CUDA device and take no rows that do not divide, so these are ours; the linears between stay megatron-core's.
On an axis of size 1 every function is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from parallel.collectives import Axis, add_up, gathered, scattered_sum


def cut_rows(x_ND: Tensor, axis: Axis) -> Tensor:
    """This rank's part of what all ranks hold. Backward: everyone's parts."""
    return x_ND if axis.size == 1 else _CutRows.apply(x_ND, axis)


def gather_rows(x_PD: Tensor, rows: int, axis: Axis) -> Tensor:
    """All parts. Backward: the sum of what the ranks' different uses give to this part."""
    return x_PD if axis.size == 1 else _GatherRows.apply(x_PD, rows, axis)


def join_rows(x_PD: Tensor, rows: int, axis: Axis) -> Tensor:
    """All parts, for a use that is the same on all ranks. Backward: this rank's part of the gradient, which all have."""
    return x_PD if axis.size == 1 else _JoinRows.apply(x_PD, rows, axis)


def sum_rows(x_ND: Tensor, axis: Axis) -> Tensor:
    """This rank's part of the sum over ranks. Backward: everyone's parts."""
    return x_ND if axis.size == 1 else _SumRows.apply(x_ND, axis)


def used_alike(x: Tensor, axis: Axis) -> Tensor:
    """Forward: identity. Backward: a share 1 / R of the gradient, for a use that is the same on all ranks beside others that
    are not: where the gradients of all ranks are added up, it counts once. Exact, as R is a power of two."""
    return x if axis.size == 1 else _UsedAlike.apply(x, axis)


def only_first(x: Tensor, axis: Axis) -> Tensor:
    """Forward: x on the first rank, zero on the others: a term that all hold enters a sum over ranks once. Backward: identity,
    as every rank sees the gradient of the sum."""
    return x if axis.size == 1 else _OnlyFirst.apply(x, axis)


def sum_gradients(parameters: Iterable[nn.Parameter], axis: Axis) -> None:
    """Add up the gradients of parameters that acted on a part of the rows on each rank: one all-reduce for all."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if axis.size == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    add_up(flat, axis)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def _parts(x_ND: Tensor, axis: Axis) -> Tensor:
    """[N, D] -> [R, P, D]."""
    missing = -x_ND.shape[0] % axis.size
    return (pad(x_ND, (0, 0, 0, missing)) if missing else x_ND).unflatten(0, (axis.size, -1))


def _whole(x_PD: Tensor, rows: int, axis: Axis) -> Tensor:
    return gathered(x_PD, axis).flatten(0, 1)[:rows]


class _CutRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, axis):
        ctx.rows, ctx.axis = x_ND.shape[0], axis
        return _parts(x_ND, axis)[axis.rank].clone()

    @staticmethod
    def backward(ctx, grad_PD):
        return _whole(grad_PD, ctx.rows, ctx.axis), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PD, rows, axis):
        ctx.axis = axis
        return _whole(x_PD, rows, axis)

    @staticmethod
    def backward(ctx, grad_ND):
        return scattered_sum(_parts(grad_ND, ctx.axis), ctx.axis), None, None


class _JoinRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_PD, rows, axis):
        ctx.axis = axis
        return _whole(x_PD, rows, axis)

    @staticmethod
    def backward(ctx, grad_ND):
        return _parts(grad_ND, ctx.axis)[ctx.axis.rank], None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, axis):
        ctx.rows, ctx.axis = x_ND.shape[0], axis
        return scattered_sum(_parts(x_ND, axis), axis)

    @staticmethod
    def backward(ctx, grad_PD):
        return _whole(grad_PD, ctx.rows, ctx.axis), None


class _UsedAlike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.axis.size, None


class _OnlyFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        return x.view_as(x) if axis.rank == 0 else torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None
