"""Merging banks of linear experts into one weight for each group of tokens, over the expert axis (papers.md 2.3).

    gates of all ranks --> plan_merge --> MergePlan, of a decision
    start_merge: each rank sums over its own experts, for its groups and for its peers' --sums for peers travel-->
    Merging.totals: own sums + what arrived

Sums of all weights and biases of a decision travel together. Weights travel instead of tokens, and only where there is something to
send: a group's matrix comes from the ranks of the experts that it chose. Nothing here depends on the data, so all of it is started long
before it is needed.
Legend: E experts, e local experts, S expert ranks, C condition groups of a rank (padded), G those that there are,
N sums for peers, R sums of peers, X numbers of an expert in one bank, Y in all banks of a decision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    """A merge under way: own sums [G, ...] of each bank, and rows that arrive, of all banks."""

    plan: MergePlan
    owns: tuple[Tensor, ...]
    received_RY: Tensor | None
    flight: Flight

    def totals(self) -> tuple[Tensor, ...]:
        """[G, ...] of each bank: each group's sum over all experts of gate x expert. To be called once."""
        if self.received_RY is None:
            return self.owns
        totals: tuple[Tensor, ...] = _Totals.apply(self.plan, self.flight.land(self.received_RY), *self.owns)
        return totals


def start_merge(gates: Sequence[Tensor], banks: Sequence[Tensor], plan: MergePlan) -> Merging:
    """Sum banks [e, ...] (weights or biases), each by its gates [S, C, e] of every rank's groups for this rank's experts."""
    flight = Flight(plan.send_counts, plan.receive_counts, plan.axis)
    if plan.axis.size == 1:
        pairs = zip(gates, banks, strict=True)
        owns = tuple(lowered(_OwnMix.apply(gate_SCe.squeeze(0), bank_eX)) for gate_SCe, bank_eX in pairs)
        return Merging(plan, owns, None, flight)
    sent_NY, *owns_GX = _Mix.apply(plan, len(banks), *gates, *banks)  # summed in fp32
    return Merging(plan, tuple(map(lowered, owns_GX)), flight.depart(lowered(sent_NY)), flight)


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
    """Sums for peers, and for this rank's groups."""

    @staticmethod
    def forward(ctx, plan, count, *gates_and_banks):
        ctx.plan = plan
        ctx.save_for_backward(*gates_and_banks)
        gates, banks = gates_and_banks[:count], gates_and_banks[count:]
        sizes = [bank_eX[0].numel() for bank_eX in banks]
        sent_NY = banks[0].new_empty(len(plan.sent_N), sum(sizes))
        owns = []
        for gate_SCe, bank_eX, sent_NX in zip(gates, banks, sent_NY.split(sizes, dim=1), strict=True):
            own_GX = bank_eX.new_empty(plan.num_groups, *bank_eX.shape[1:])
            gate_Ne, gate_Ge = _gates(gate_SCe, plan)
            _mix(gate_Ne, bank_eX.flatten(1), sent_NX)
            _mix(gate_Ge, bank_eX.flatten(1), own_GX.flatten(1), skipped=plan.without_own)
            owns.append(own_GX)
        return sent_NY, *owns

    @staticmethod
    def backward(ctx, dsent_NY, *downs):
        plan, saved = ctx.plan, ctx.saved_tensors
        gates, banks = saved[: len(downs)], saved[len(downs) :]
        dgates, dbanks = [], []
        parts = dsent_NY.split([bank_eX[0].numel() for bank_eX in banks], dim=1)
        for gate_SCe, bank_eX, dsent_NX, down_GX in zip(gates, banks, parts, downs, strict=True):
            gate_Ke = torch.cat(_gates(gate_SCe, plan))
            dgate_Ke, dbank_eX = _mix_backward(gate_Ke, bank_eX.flatten(1), dsent_NX, down_GX.flatten(1))
            dgate_SCe = torch.zeros_like(gate_SCe)
            sent, own = dgate_Ke.split([len(plan.sent_N), plan.num_groups])
            dgate_SCe[plan.axis.rank, : plan.num_groups] = own
            for (rank, group), dgate_e in zip(plan.sent_N, sent, strict=True):
                dgate_SCe[rank, group] = dgate_e
            dgates.append(dgate_SCe)
            dbanks.append(dbank_eX.view_as(bank_eX))
        return None, None, *dgates, *dbanks


class _Totals(torch.autograd.Function):
    """Adds what arrived to the own sums, in place."""

    @staticmethod
    def forward(ctx, plan, received_RY, *owns):
        ctx.plan = plan
        ctx.mark_dirty(*owns)
        empty = set(plan.without_own)
        parts = received_RY.split([own_GX[0].numel() for own_GX in owns], dim=1)
        for row, group in enumerate(plan.arrives_R):
            for own_GX, received_RX in zip(owns, parts, strict=True):
                row_X = received_RX[row].view_as(own_GX[group])
                if group in empty:
                    own_GX[group].copy_(row_X)
                else:
                    own_GX[group].add_(row_X)
            empty.discard(group)
        return owns

    @staticmethod
    def backward(ctx, *dtotals):
        arrives_R = ctx.plan.arrives_R
        dreceived_RY = dtotals[0].new_empty(len(arrives_R), sum(dtotal_GX[0].numel() for dtotal_GX in dtotals))
        parts = dreceived_RY.split([dtotal_GX[0].numel() for dtotal_GX in dtotals], dim=1)
        for row, group in enumerate(arrives_R):
            for dtotal_GX, dreceived_RX in zip(dtotals, parts, strict=True):
                dreceived_RX[row].view_as(dtotal_GX[group]).copy_(dtotal_GX[group])
        return None, dreceived_RY, *dtotals


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
