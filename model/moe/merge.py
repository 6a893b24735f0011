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
import functools
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

    @functools.cached_property
    def rounds(self) -> list[list[tuple[int, int]]]:
        """(row, group) of all that arrives: those that come first in their group's sum, then the second ones, and so on."""
        rounds = list[list[tuple[int, int]]]([[]])
        before_G = [int(group not in self.without_own) for group in range(self.num_groups)]
        for row, group in enumerate(self.arrives_R):
            if before_G[group] == len(rounds):
                rounds.append([])
            rounds[before_G[group]].append((row, group))
            before_G[group] += 1
        return rounds


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
        gates, banks = gates_and_banks[:count], gates_and_banks[count:]
        sizes = [bank_eX[0].numel() for bank_eX in banks]
        sent_NY = banks[0].new_empty(len(plan.sent_N), sum(sizes))
        gates_Ke, owns = [torch.stack(_gates(gate_SCe, plan)) for gate_SCe in gates], []
        for gate_Ke, bank_eX, sent_NX in zip(gates_Ke, banks, sent_NY.split(sizes, dim=1), strict=True):
            own_GX = bank_eX.new_empty(plan.num_groups, *bank_eX.shape[1:])
            gate_Ne, gate_Ge = gate_Ke.split([len(plan.sent_N), plan.num_groups])
            _mix(gate_Ne, bank_eX.flatten(1), sent_NX)
            _mix(gate_Ge, bank_eX.flatten(1), own_GX.flatten(1), skipped=plan.without_own)
            owns.append(own_GX)
        ctx.plan, ctx.gate_shape = plan, gates[0].shape
        ctx.save_for_backward(*gates_Ke, *banks)
        return sent_NY, *owns

    @staticmethod
    def backward(ctx, dsent_NY, *downs):
        plan, saved = ctx.plan, ctx.saved_tensors
        gates_Ke, banks = saved[: len(downs)], saved[len(downs) :]
        dgates, dbanks = [], []
        parts = dsent_NY.split([bank_eX[0].numel() for bank_eX in banks], dim=1)
        for gate_Ke, bank_eX, dsent_NX, down_GX in zip(gates_Ke, banks, parts, downs, strict=True):
            dgate_Ke, dbank_eX = _mix_backward(gate_Ke, bank_eX.flatten(1), dsent_NX, down_GX.flatten(1))
            dgate_SCe = gate_Ke.new_zeros(ctx.gate_shape)
            torch._foreach_copy_(_gates(dgate_SCe, plan), list(dgate_Ke))
            dgates.append(dgate_SCe)
            dbanks.append(dbank_eX.view_as(bank_eX))
        return None, None, *dgates, *dbanks


class _Totals(torch.autograd.Function):
    """Adds what arrived to the own sums, in place; rows of all groups and banks at once, as a launch for each would take longer than the
    sum."""

    @staticmethod
    def forward(ctx, plan, received_RY, *owns):
        ctx.plan = plan
        ctx.mark_dirty(*owns)
        firsts, *others = plan.rounds
        if firsts:
            torch._foreach_copy_(*_both(owns, received_RY, firsts))
        for summands in others:
            torch._foreach_add_(*_both(owns, received_RY, summands))
        return owns

    @staticmethod
    def backward(ctx, *dtotals):
        arrives_R = ctx.plan.arrives_R
        dreceived_RY = dtotals[0].new_empty(len(arrives_R), sum(dtotal_GX[0].numel() for dtotal_GX in dtotals))
        if arrives_R:
            of_groups, of_rows = _both(dtotals, dreceived_RY, list(enumerate(arrives_R)))
            torch._foreach_copy_(of_rows, of_groups)
        return None, dreceived_RY, *dtotals


def _both(
    banks: Sequence[Tensor], rows_RY: Tensor, places: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """For each bank [G, ...] and (row, group): the group's part of the bank, and the bank's part of the row."""
    parts = list(zip(banks, rows_RY.split([bank_GX[0].numel() for bank_GX in banks], dim=1), strict=True))
    of_groups = [bank_GX[group] for bank_GX, _ in parts for _, group in places]
    of_rows = [rows_RX[row].view(bank_GX.shape[1:]) for bank_GX, rows_RX in parts for row, _ in places]
    return of_groups, of_rows


def _gates(gate_SCe: Tensor, plan: MergePlan) -> list[Tensor]:
    """Those of the sums for peers, then those of this rank's groups, [e] each."""
    own = [(plan.axis.rank, group) for group in range(plan.num_groups)]
    return [gate_SCe[rank, group] for rank, group in (*plan.sent_N, *own)]


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
