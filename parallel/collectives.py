"""Collectives over one axis of the mesh; those that are differentiable have their backward beside them.

On an axis of size 1 every function is the identity, so serial and parallel are the same code. Backward passes *sum*
over ranks; the one division by the data degree happens in the engine. Whoever asks for it learns what is sent (parallel/traffic.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.traffic import Traffic, sent_by_all_reduce, sent_by_exchange, sent_by_gather, sent_by_scatter

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the mesh: this rank's place in a process group. A size of 1 needs no group. traffic: counts what is sent, if it is
    there."""

    name: str
    size: int = 1
    rank: int = 0
    group: Any = None
    traffic: Traffic | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.size == 1 or self.group is not None, f"axis {self.name} of size {self.size} has no process group"

    def sends(self, num_bytes: int) -> contextlib.AbstractContextManager[None]:
        """Around a collective in which this rank sends so much."""
        if self.traffic is None:
            return contextlib.nullcontext()
        self.traffic.sends(num_bytes)
        return self.traffic.waiting()


def copy_to_axis(x: Tensor, axis: Axis) -> Tensor:
    """Forward: identity. Backward: all-reduce (every rank used the same x for a different part of the work)."""
    return x if axis.size == 1 else _CopyToAxis.apply(x, axis)


def reduce_from_axis(x: Tensor, axis: Axis) -> Tensor:
    """Forward: all-reduce sum. Backward: identity (the result is the same on all ranks)."""
    return x if axis.size == 1 else _ReduceFromAxis.apply(x, axis)


def count_sum(x: Tensor, axis: Axis) -> Tensor:
    """Identity, for a sum over ranks that somebody else has made of x."""
    if axis.traffic is not None:
        axis.traffic.sends(sent_by_all_reduce(x, axis.size))
    return x


def count_gradient_sum(x: Tensor, axis: Axis) -> Tensor:
    """Identity, for a sum over ranks that somebody else makes of x's gradient."""
    return x if axis.traffic is None else _CountGradientSum.apply(x, axis)


def all_gather(x: Tensor, axis: Axis) -> Tensor:
    """Stack [...] of every rank to [R, ...]. Backward: every rank receives the sum of the gradients of its part."""
    return x.unsqueeze(0) if axis.size == 1 else _AllGather.apply(x, axis)


def all_to_all(x: Tensor, send_counts: list[int], receive_counts: list[int], axis: Axis) -> Tensor:
    """Rows of x [sum(send), ...] go to the ranks in blocks; returns [sum(receive), ...]. Zero rows are a normal case."""
    return x if axis.size == 1 else _AllToAll.apply(x, send_counts, receive_counts, axis)


class Flight:
    """An all-to-all of rows that may be under way while other work is done: rows `depart`, and later they `land`.

    Gradients take the way back in the same manner: they depart where rows landed, and land where rows departed, after all
    that was computed in between.
    """

    def __init__(self, send_counts: list[int], receive_counts: list[int], axis: Axis) -> None:
        self.send_counts, self.receive_counts, self.axis = send_counts, receive_counts, axis
        self._under_way: Any = None  # the work, and what it reads and writes

    def depart(self, x: Tensor) -> Tensor:
        """Send rows of x [sum(send), ...] to the ranks in blocks -> [sum(receive), ...], for `land` alone: they are not there."""
        return _Depart.apply(x, self)

    def land(self, x: Tensor) -> Tensor:
        """What `depart` returned, once it is there."""
        return _Land.apply(x, self)

    def start(self, x: Tensor, send_counts: list[int], receive_counts: list[int]) -> Tensor:
        x, out = x.contiguous(), x.new_empty((sum(receive_counts), *x.shape[1:]))
        if self.axis.traffic is not None:
            self.axis.traffic.sends(sent_by_exchange(x, send_counts, self.axis.rank))
        work = dist.all_to_all_single(out, x, receive_counts, send_counts, group=self.axis.group, async_op=True)
        self._under_way = work, x, out
        return out

    def wait(self) -> Tensor:
        (work, _, out), self._under_way = self._under_way, None
        with self.axis.sends(0):
            work.wait()
        return out


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, flight):
        ctx.flight = flight
        return flight.start(x, flight.send_counts, flight.receive_counts)

    @staticmethod
    def backward(ctx, grad):
        return ctx.flight.wait(), None


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, flight):
        ctx.flight = flight
        flight.wait()
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.flight.start(grad, ctx.flight.receive_counts, ctx.flight.send_counts)
        return grad, None


class _CopyToAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        add_up(grad, ctx.axis)
        return grad, None


class _ReduceFromAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        x = x.clone(memory_format=torch.contiguous_format)
        add_up(x, axis)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _CountGradientSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return count_sum(grad, ctx.axis), None


def add_up(x: Tensor, axis: Axis, operation: Any = dist.ReduceOp.SUM) -> None:
    """All-reduce in place, without a gradient; x is contiguous."""
    with axis.sends(sent_by_all_reduce(x, axis.size)):
        dist.all_reduce(x, op=operation, group=axis.group)


def gathered(x: Tensor, axis: Axis) -> Tensor:
    """[...] of every rank as [R, ...], without a gradient."""
    out = x.new_empty((axis.size * x.shape[0], *x.shape[1:]) if x.dim() else (axis.size,))
    with axis.sends(sent_by_gather(x, axis.size)):
        dist.all_gather_single(out, x.contiguous(), group=axis.group)
    return out.view(axis.size, *x.shape)


def scattered_sum(x: Tensor, axis: Axis) -> Tensor:
    """Part r of [R, ...], summed over ranks, to rank r as [...], without a gradient."""
    out = x.new_empty(x.shape[1:])
    with axis.sends(sent_by_scatter(x, axis.size)):
        flat = x.contiguous().flatten(0, 1) if x.dim() > 1 else x.contiguous()
        dist.reduce_scatter_single(out, flat, group=axis.group)
    return out


def maximum(x: Tensor, axis: Axis) -> Tensor:
    """The largest over ranks, element by element, without a gradient."""
    return _reduced(x, axis, dist.ReduceOp.MAX)


def total(x: Tensor, axis: Axis) -> Tensor:
    """The sum over ranks, element by element, without a gradient."""
    return _reduced(x, axis, dist.ReduceOp.SUM)


def _reduced(x: Tensor, axis: Axis, operation: Any) -> Tensor:
    x = x.detach()
    if axis.size == 1:
        return x
    x = x.clone()
    add_up(x, axis, operation)
    return x


def gathered_objects(value: T, axis: Axis) -> list[T]:
    """Every rank's value, which is pickled on the way: for a few results, not for tensors of a step."""
    if axis.size == 1:
        return [value]
    found: list[Any] = [None] * axis.size
    dist.all_gather_object(found, value, group=axis.group)
    return found


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, axis):
        ctx.axis = axis
        return gathered(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return scattered_sum(grad, ctx.axis), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, send_counts, receive_counts, axis):
        ctx.counts, ctx.axis = (send_counts, receive_counts), axis
        return exchanged(x, send_counts, receive_counts, axis)

    @staticmethod
    def backward(ctx, grad):
        send_counts, receive_counts = ctx.counts
        return exchanged(grad, receive_counts, send_counts, ctx.axis), None, None, None


def exchanged(x: Tensor, send_counts: list[int], receive_counts: list[int], axis: Axis) -> Tensor:
    """An all-to-all of rows, without a gradient."""
    out = x.new_empty((sum(receive_counts), *x.shape[1:]))
    with axis.sends(sent_by_exchange(x, send_counts, axis.rank)):
        dist.all_to_all_single(out, x.contiguous(), receive_counts, send_counts, group=axis.group)
    return out
