"""Merging a bank of linear experts into one weight for each group of tokens, over the expert axis (papers.md 2.3).

    gates of all ranks --> plan_merge --> MergePlan, of a decision
    start_merge: each rank sums over its own experts, for its groups and for its peers' --sums for peers travel-->
    Merging.total: own sums + what arrived

Weights travel instead of tokens, and only where there is something to send: a group's matrix comes from the ranks of the
experts that it chose. Nothing here depends on the data, so all of it can be started long before it is needed.
Legend: E experts, e local experts, S expert ranks, C condition groups of a rank (padded), G those that there are,
N sums for peers, R sums of peers, X numbers of an expert.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parallel.collectives import Axis, Flight
from parallel.precision import lowered


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """
    sent_N          (rank, group) that this rank sums for, by rank
    arrives_R       the group of each row that arrives
    num_groups      G, this rank's groups
    without_own     groups that chose none of this rank's experts
    send_counts     rows to each expert rank; receive_counts: rows from each
    """

    axis: Axis
    sent_N: list[tuple[int, int]]
    arrives_R: list[int]
    num_groups: int
    without_own: frozenset[int]
    send_counts: list[int]
    receive_counts: list[int]


def plan_merge(has: list[list[list[bool]]], num_groups: int, axis: Axis) -> MergePlan:
    """has[s][c][r]: group c of rank s has chosen an expert of rank r; padded to equally many groups. Every rank knows those of all, so
    nothing more has to be agreed on."""
    ranks = range(axis.size)
    if axis.size == 1:
        return MergePlan(axis, [], [], num_groups, frozenset(), [0], [0])
    peers = [rank for rank in ranks if rank != axis.rank]
    groups = range(len(has[0]))
    sent_N = [(peer, group) for peer in peers for group in groups if has[peer][group][axis.rank]]
    own = has[axis.rank]
    arrives = [(peer, group) for peer in peers for group in range(num_groups) if own[group][peer]]
    return MergePlan(
        axis,
        sent_N,
        [group for _, group in arrives],
        num_groups,
        frozenset(group for group in range(num_groups) if not own[group][axis.rank]),
        [sum(to == rank for to, _ in sent_N) for rank in ranks],
        [sum(source == rank for source, _ in arrives) for rank in ranks],
    )


@dataclasses.dataclass(frozen=True)
class Merging:
    """A merge under way: own sums [G, ...], and rows that arrive."""

    plan: MergePlan
    own_GX: Tensor
    received_RX: Tensor
    flight: Flight

    def total(self) -> Tensor:
        """[G, ...]: each group's sum over all experts of gate x expert. To be called once."""
        if self.plan.axis.size == 1:
            return self.own_GX
        return _Total.apply(self.own_GX, self.flight.land(self.received_RX), self.plan)


def start_merge(gate_SCe: Tensor, bank_eX: Tensor, plan: MergePlan) -> Merging:
    """Sum a bank [e, ...] (weights or biases) by the gates of every rank's groups for this rank's experts."""
    flight = Flight(plan.send_counts, plan.receive_counts, plan.axis)
    if plan.axis.size == 1:
        own_GX = lowered(_OwnMix.apply(gate_SCe.squeeze(0), bank_eX))
        return Merging(plan, own_GX, own_GX[:0], flight)
    sent_NX, own_GX = map(lowered, _Mix.apply(gate_SCe, bank_eX, plan))  # summed in fp32
    return Merging(plan, own_GX, flight.depart(sent_NX), flight)


class _OwnMix(torch.autograd.Function):
    """Where one rank holds all experts."""

    @staticmethod
    def forward(ctx, gate_Ge, bank_eX):
        ctx.save_for_backward(gate_Ge, bank_eX)
        own_GX = bank_eX.new_empty(len(gate_Ge), *bank_eX.shape[1:])
        _mix(gate_Ge, bank_eX.flatten(1), own_GX.flatten(1))
        return own_GX

    @staticmethod
    def backward(ctx, down_GX):
        gate_Ge, bank_eX = ctx.saved_tensors
        dgate_Ge, dbank_eX = _mix_backward(gate_Ge, bank_eX.flatten(1), down_GX.flatten(1))
        return dgate_Ge, dbank_eX.view_as(bank_eX)


class _Mix(torch.autograd.Function):
    """Sums for peers and for this rank's groups."""

    @staticmethod
    def forward(ctx, gate_SCe, bank_eX, plan):
        ctx.plan = plan
        ctx.save_for_backward(gate_SCe, bank_eX)
        sent_NX = bank_eX.new_empty(len(plan.sent_N), *bank_eX.shape[1:])
        own_GX = bank_eX.new_empty(plan.num_groups, *bank_eX.shape[1:])
        gate_Ne, gate_Ge = _gates(gate_SCe, plan)
        _mix(gate_Ne, bank_eX.flatten(1), sent_NX.flatten(1))
        _mix(gate_Ge, bank_eX.flatten(1), own_GX.flatten(1), skipped=plan.without_own)
        return sent_NX, own_GX

    @staticmethod
    def backward(ctx, dsent_NX, down_GX):
        gate_SCe, bank_eX = ctx.saved_tensors
        plan = ctx.plan
        gate_Ke = torch.cat(_gates(gate_SCe, plan))
        dgate_Ke, dbank_eX = _mix_backward(gate_Ke, bank_eX.flatten(1), dsent_NX.flatten(1), down_GX.flatten(1))
        dgate_SCe = torch.zeros_like(gate_SCe)
        sent, own = dgate_Ke.split([len(plan.sent_N), plan.num_groups])
        dgate_SCe[plan.axis.rank, : plan.num_groups] = own
        for (rank, group), dgate_e in zip(plan.sent_N, sent, strict=True):
            dgate_SCe[rank, group] = dgate_e
        return dgate_SCe, dbank_eX.view_as(bank_eX), None


class _Total(torch.autograd.Function):
    """Adds what arrived to the own sums, in place."""

    @staticmethod
    def forward(ctx, own_GX, received_RX, plan):
        ctx.plan = plan
        ctx.mark_dirty(own_GX)
        empty = set(plan.without_own)
        for group, row_X in zip(plan.arrives_R, received_RX, strict=True):
            if group in empty:
                own_GX[group].copy_(row_X)
                empty.remove(group)
            else:
                own_GX[group].add_(row_X)
        return own_GX

    @staticmethod
    def backward(ctx, dtotal_GX):
        arrives_R = ctx.plan.arrives_R
        in_order = arrives_R == list(range(len(dtotal_GX)))
        return dtotal_GX, dtotal_GX if in_order else dtotal_GX[arrives_R], None


def _gates(gate_SCe: Tensor, plan: MergePlan) -> tuple[Tensor, Tensor]:
    """-> (gates of the sums for peers, gates of this rank's groups)."""
    own_Ge = gate_SCe[plan.axis.rank, : plan.num_groups]
    sent = [gate_SCe[rank, group] for rank, group in plan.sent_N]
    return torch.stack(sent) if sent else own_Ge[:0], own_Ge


def mixes_all(gate: Tensor) -> bool:
    """Whether products read all experts, also those whose gate is zero."""
    return gate.is_cuda


def _mix(gate_Ne: Tensor, bank_eX: Tensor, out_NX: Tensor, skipped: frozenset[int] = frozenset()) -> None:
    """out = gate @ bank. On the CPU, where memory is the limit, experts with a zero gate are not read, and `skipped` rows not
    written; asking a GPU which they are would cost more than reading them."""
    if mixes_all(gate_Ne):
        torch.mm(gate_Ne.to(bank_eX.dtype), bank_eX, out=out_NX)
        return
    for row, (gates, out_X) in enumerate(zip(gate_Ne.tolist(), out_NX, strict=True)):
        chosen = [(gate, expert_X) for gate, expert_X in zip(gates, bank_eX, strict=True) if gate]
        if not chosen and row not in skipped:
            out_X.zero_()
        for position, (gate, expert_X) in enumerate(chosen):
            if position:
                out_X.add_(expert_X, alpha=gate)
            else:
                torch.mul(expert_X, gate, out=out_X)


def _mix_backward(gate_Ke: Tensor, bank_eX: Tensor, *douts: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and bank; rows of the gate belong to rows of all douts [*, X], one after another. A gate of zero was
    not chosen: no router lets a gradient through it."""
    if mixes_all(gate_Ke):
        dout_KX = torch.cat(douts) if len(douts) > 1 else douts[0]
        gate_in = gate_Ke.to(bank_eX.dtype)
        return (dout_KX @ bank_eX.t()).to(gate_Ke.dtype), gate_in.t() @ dout_KX
    dgate_Ke, dbank_eX = torch.zeros_like(gate_Ke), torch.empty_like(bank_eX)
    gates_Ke, rows = gate_Ke.tolist(), [dout_X for dout in douts for dout_X in dout]
    for expert in range(bank_eX.shape[0]):
        chosen = [(row, gates[expert]) for row, gates in enumerate(gates_Ke) if gates[expert]]
        if not chosen:
            dbank_eX[expert].zero_()
        for position, (row, gate) in enumerate(chosen):
            dgate_Ke[row, expert] = torch.dot(rows[row], bank_eX[expert])
            if position:
                dbank_eX[expert].add_(rows[row], alpha=gate)
            else:
                torch.mul(rows[row], gate, out=dbank_eX[expert])
    return dgate_Ke, dbank_eX
