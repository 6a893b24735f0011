"""Tokens to the ranks of their experts and back through DeepSpeed's MoE layer, by decisions and with experts of ours.

    T tokens --slots of each expert--> [E, C, D] --all-to-all, equal parts--> [S, e, C, D] --experts--> the same way back, weighed at home

Every expert has C slots on every rank, which travel filled or not: nothing tells a rank how many rows another sends, but all must have
the same C. Legend: T tokens of a pass, D width, K choices, E experts, e local experts, S expert ranks, C slots, R rows of all slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from parallel.collectives import Axis, maximum
from parallel.dispatch_plan import RowGroups
from parallel.launch import tell_accelerator
from parallel.traffic import bytes_of


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """Who goes where, as DeepSpeed's gates say it.

    expert_KT    int32, -1 where the choice was dropped
    place_KT     int32, the slot of its expert, below `slots`
    weights_KT   0 where the choice was dropped
    slots        C, the same on all expert ranks
    """

    axis: Axis
    num_experts: int
    expert_KT: Tensor
    place_KT: Tensor
    weights_KT: Tensor
    slots: int


def plan_slots(
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    kept_TK: Tensor | None,
    num_experts: int,
    axis: Axis,
    slots: int | None = None,
) -> SlotPlan:
    """kept_TK: None where no choice was dropped. slots: of an expert on this rank; None: as many as the fullest asks for, which the host
    waits for. Between ranks the largest number counts (one all-reduce, for which the host waits)."""
    chosen_TK = torch.ones_like(expert_ids_TK) if kept_TK is None else kept_TK.to(expert_ids_TK.dtype)
    taken_TE = chosen_TK.new_zeros(len(chosen_TK), num_experts).scatter_(1, expert_ids_TK, chosen_TK)
    place_TK = (taken_TE.cumsum(0) - 1).gather(1, expert_ids_TK)
    if slots is None or axis.size > 1:
        most = taken_TE.sum(0).max() if slots is None else taken_TE.new_full((), slots)
        slots = int(maximum(most, axis))
    expert_TK = expert_ids_TK if kept_TK is None else expert_ids_TK.masked_fill(~kept_TK, -1)
    return SlotPlan(
        axis=axis,
        num_experts=num_experts,
        expert_KT=expert_TK.T.to(torch.int32),
        place_KT=place_TK.T.to(torch.int32),
        weights_KT=weights_TK.T,
        slots=max(1, slots),
    )


def through_deepspeed(x_TD: Tensor, plan: SlotPlan, experts: Callable[[Tensor, RowGroups], Tensor]) -> Tensor:
    """[T, D] -> [T, D]: every token the weighted sum of its experts' results; zero where all choices were dropped. experts: rows by local
    expert -> rows."""
    tell_accelerator(torch.cuda.is_available())
    from deepspeed.moe.sharded_moe import MOELayer

    axis, local = plan.axis, plan.num_experts // plan.axis.size

    def gate(x_TD: Tensor, *_: object) -> tuple[object, ...]:
        """In place of DeepSpeed's: what its layer expects, without a loss and counts of its own."""
        return None, plan.slots, plan.num_experts, plan.expert_KT, plan.place_KT, plan.weights_KT, None

    def computed(x_SeCD: Tensor) -> Tensor:
        x_SeCD = _ExchangeCounted.apply(x_SeCD, axis)
        rows = axis.size * plan.slots
        groups = RowGroups.equal(local, rows, x_SeCD.device)
        y_RD = experts(x_SeCD.transpose(0, 1).flatten(0, 2), groups)
        y_SeCD = y_RD.view(local, axis.size, plan.slots, -1).transpose(0, 1)
        return _ExchangeCounted.apply(y_SeCD, axis)

    layer = MOELayer(gate, computed, "", axis.size, local)
    layer.ep_group = axis.group
    y_TD: Tensor = layer(x_TD, None)
    return y_TD


class _ExchangeCounted(torch.autograd.Function):
    """Identity beside an exchange that DeepSpeed makes, forward and backward: counted, but not timed."""

    @staticmethod
    def forward(ctx, x_SeCD, axis):
        ctx.axis = axis
        _count(x_SeCD, axis)
        return x_SeCD.view_as(x_SeCD)

    @staticmethod
    def backward(ctx, grad_SeCD):
        _count(grad_SeCD, ctx.axis)
        return grad_SeCD, None


def _count(x_SeCD: Tensor, axis: Axis) -> None:
    if axis.traffic is not None:
        axis.traffic.sends(bytes_of(x_SeCD) // axis.size * (axis.size - 1))
