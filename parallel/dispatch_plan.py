"""Which token's copy goes to which rank and expert, before anything travels (parallel/dispatch.py).

    T tokens x K choices --sort by expert--> N copies --counts or slots of every rank--> who sends how many rows to whom, R rows arrive

Dropped choices are not sent to other ranks. On one rank nothing is counted on the host, which would have to wait for a device: all copies
that could be kept have a row, and those that were dropped come last, with a weight of zero. Zero rows for an expert, from a rank or in all
are normal cases.
Legend: T tokens of a pass, K choices, N copies on this rank, R rows received, E experts, e local experts, S expert ranks, P parts, C slots
of an expert, X all pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad

from parallel.collectives import Axis, exchanged, gathered

Blocks = tuple[tuple[int, int, int], ...]
"""(first row, row after the last, number of the expert); in order and without gaps."""


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Which rows belong to which expert: those of expert e end before row ends_e[e], int32, and begin where the last one's end. Rows that
    follow, up to `rows`, are of none: their results are of no use, but must be finite. expert_R: of each row, those that follow counted to
    the last expert. is_all: none follow. each: the rows of every expert, where all have as many."""

    ends_e: Tensor
    rows: int
    expert_R: Tensor
    is_all: bool
    each: int | None = None

    @classmethod
    def equal(cls, experts: int, rows: int, device: torch.device) -> RowGroups:
        """So many rows of each."""
        numbers_e = torch.arange(experts, device=device)
        expert_R = numbers_e[:, None].expand(-1, rows).flatten()
        return cls((numbers_e + 1).mul_(rows).to(torch.int32), experts * rows, expert_R, is_all=True, each=rows)

    @functools.cached_property
    def covering_ends_e(self) -> Tensor:
        """The last expert has what is left."""
        return self.ends_e if self.is_all else pad(self.ends_e[:-1], (0, 1), value=self.rows)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """On the host: a device is waited for where experts have rows in numbers of their own."""
        if self.each is None:
            ends = self.ends_e.tolist() if self.rows else [0] * len(self.ends_e)
        else:
            ends = [self.each * (index + 1) for index in range(len(self.ends_e))]
        return tuple((start, end, index) for index, (start, end) in enumerate(itertools.pairwise([0, *ends])))

    @functools.cached_property
    def is_empty_e(self) -> Tensor:
        return self.covering_ends_e.diff(prepend=self.ends_e.new_zeros(1)) == 0

    @functools.cached_property
    def is_of_eR(self) -> Tensor:
        """bf16, which holds 0 and 1."""
        numbers_e = torch.arange(len(self.ends_e), device=self.expert_R.device)
        return (self.expert_R == numbers_e[:, None]).to(torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class DispatchPlan:
    """Who goes where: made once per decision, used by every linear of the pair.

    pair_N, token_N     the pair of [T x K] and the token of each copy, copies sorted by global expert id
    is_filled_N         False for slots that are sent without a copy of theirs, with a weight of zero; None where there are none
    copies_TK           the copy of each token's choice, any where there is none
    firsts_T            the first pair of each of the T tokens
    kept_TK             choices that have a copy; None where all have
    send_counts         rows to each expert rank; receive_counts: rows from each
    groups              the received rows, sorted by local expert
    arrival_R           the place of each among the rows as they arrive; None where they arrive sorted
    """

    axis: Axis
    num_choices: int
    pair_N: Tensor
    token_N: Tensor
    copies_TK: Tensor
    firsts_T: Tensor
    kept_TK: Tensor | None
    send_counts: list[int]
    receive_counts: list[int]
    groups: RowGroups
    arrival_R: Tensor | None
    is_filled_N: Tensor | None = None

    @functools.cached_property
    def dropped_TK(self) -> Tensor | None:
        return None if self.kept_TK is None else ~self.kept_TK


@dataclasses.dataclass(frozen=True)
class _Copies:
    """Of some tokens, sorted by expert: what is known before ranks have asked each other. ends_E: int32 on one rank."""

    key_N: Tensor
    pair_N: Tensor
    copies_TK: Tensor
    firsts_T: Tensor
    ends_E: Tensor
    kept_TK: Tensor | None

    @classmethod
    def of(cls, expert_ids_TK: Tensor, kept_TK: Tensor | None, num_experts: int, axis: Axis) -> _Copies:
        pairs, num_choices = expert_ids_TK.numel(), expert_ids_TK.shape[1]
        key_TK = expert_ids_TK if kept_TK is None else torch.where(kept_TK, expert_ids_TK, num_experts)
        key_N, pair_N = torch.sort(key_TK.flatten(), stable=True)
        numbers = torch.arange(max(pairs, num_experts), device=key_N.device)
        copies_N = torch.empty_like(pair_N).index_copy_(0, pair_N, numbers[:pairs])
        return cls(
            key_N=key_N,
            pair_N=pair_N,
            copies_TK=copies_N.view(-1, num_choices),
            firsts_T=numbers[:pairs:num_choices].contiguous(),
            ends_E=torch.searchsorted(key_N, numbers[:num_experts], right=True, out_int32=axis.size == 1),
            kept_TK=kept_TK,
        )

    def plan(
        self,
        axis: Axis,
        send_counts: list[int],
        receive_counts: list[int],
        groups: RowGroups,
        arrival_R: Tensor | None = None,
    ) -> DispatchPlan:
        num_choices, count = self.copies_TK.shape[1], sum(send_counts)
        pair_N, copies_TK = self.pair_N[:count], self.copies_TK
        return DispatchPlan(
            axis=axis,
            num_choices=num_choices,
            pair_N=pair_N,
            token_N=pair_N if num_choices == 1 else pair_N.div(num_choices, rounding_mode="floor"),
            copies_TK=copies_TK if count == copies_TK.numel() else copies_TK.clamp(max=max(0, count - 1)),
            firsts_T=self.firsts_T,
            kept_TK=self.kept_TK,
            send_counts=send_counts,
            receive_counts=receive_counts,
            groups=groups,
            arrival_R=arrival_R,
        )


def plan_dispatch(
    expert_ids_TK: Tensor, kept_TK: Tensor | None, num_experts: int, axis: Axis, most_kept: int | None = None
) -> DispatchPlan:
    """kept_TK: None where no choice was dropped. most_kept: so many can be kept at most. Between ranks, agrees with the others on how many
    rows go where (one small all-to-all of counts, for which the host waits)."""
    if axis.size > 1:
        return plan_parts(expert_ids_TK, kept_TK, num_experts, axis, 1)[0]
    copies = _Copies.of(expert_ids_TK, kept_TK, num_experts, axis)
    pairs = expert_ids_TK.numel()
    count = pairs if most_kept is None else min(pairs, most_kept)
    expert_R = copies.key_N[:count]
    if kept_TK is not None:
        expert_R = expert_R.clamp(max=num_experts - 1)
    return copies.plan(axis, [count], [count], RowGroups(copies.ends_E, count, expert_R, kept_TK is None))


def plan_parts(
    expert_ids_TK: Tensor, kept_TK: Tensor | None, num_experts: int, axis: Axis, parts: int
) -> tuple[DispatchPlan, ...]:
    """Plans of the same number of parts on every rank, each of some tokens in a row. Counts of all are exchanged at once."""
    local = num_experts // axis.size
    ids = expert_ids_TK.tensor_split(parts)
    kept = [None] * parts if kept_TK is None else kept_TK.tensor_split(parts)
    copies = [_Copies.of(*part, num_experts, axis) for part in zip(ids, kept, strict=True)]
    ends_PE = torch.stack([part.ends_E for part in copies])
    sent_SPe = torch.diff(ends_PE, prepend=ends_PE.new_zeros(parts, 1)).view(parts, axis.size, local).transpose(0, 1)
    one_each = [1] * axis.size
    received_SPe = exchanged(sent_SPe.contiguous(), one_each, one_each, axis)
    sent, received = torch.stack([sent_SPe.sum(2), received_SPe.sum(2)]).tolist()  # the only wait
    expert_X = torch.arange(local, device=ends_PE.device).repeat(axis.size)
    plans = []
    for number, part in enumerate(copies):
        send_counts, receive_counts = ([of_rank[number] for of_rank in counts] for counts in (sent, received))
        received_Se, rows = received_SPe[:, number], sum(receive_counts)
        expert_R = expert_X.repeat_interleave(received_Se.flatten(), output_size=rows)
        arrival_R = None
        if local > 1:
            expert_R, arrival_R = torch.sort(expert_R, stable=True)
        groups = RowGroups(received_Se.sum(0).cumsum(0).to(torch.int32), rows, expert_R, is_all=True)
        plans.append(part.plan(axis, send_counts, receive_counts, groups, arrival_R))
    return tuple(plans)


def agreed_slots(slots: int, device: torch.device, axis: Axis) -> tuple[int, ...]:
    """Of an expert on each rank: a small all-gather, for which the host waits."""
    return tuple(gathered(torch.full((1,), slots, device=device), axis).flatten().tolist())


def plan_in_slots(
    expert_ids_TK: Tensor, kept_TK: Tensor, num_experts: int, axis: Axis, slots_S: tuple[int, ...]
) -> DispatchPlan:
    """Every rank sends as many rows of each expert as it has slots for it, filled or not, so no device is asked how many there are.
    slots_S: of an expert on each rank; no expert keeps more choices. There is at least one token."""
    copies = _Copies.of(expert_ids_TK, kept_TK, num_experts, axis)
    pairs, num_choices = expert_ids_TK.numel(), expert_ids_TK.shape[1]
    slots, local, device = slots_S[axis.rank], num_experts // axis.size, expert_ids_TK.device
    starts_E = pad(copies.ends_E[:-1], (1, 0))
    place_EC = starts_E[:, None] + torch.arange(slots, device=device)
    pair_N = copies.pair_N.index_select(0, place_EC.clamp(max=pairs - 1).flatten())
    # The slot of each kept choice, from its place in the order by expert.
    key_X = copies.key_N.clamp(max=num_experts - 1)
    slot_X = key_X * slots + torch.arange(pairs, device=device) - starts_E.index_select(0, key_X)
    copies_X = torch.empty_like(slot_X).index_copy_(0, copies.pair_N, slot_X.clamp(max=num_experts * slots - 1))
    receive_counts, of_each = [local * number for number in slots_S], sum(slots_S)
    arrival_R = None
    if local > 1:
        arriving = torch.arange(local * of_each, device=device).split(receive_counts)
        arrival_R = torch.cat([rows.view(local, -1) for rows in arriving], dim=1).flatten()
    return DispatchPlan(
        axis=axis,
        num_choices=num_choices,
        pair_N=pair_N,
        token_N=pair_N.div(num_choices, rounding_mode="floor"),
        copies_TK=copies_X.view(-1, num_choices),
        firsts_T=copies.firsts_T,
        kept_TK=kept_TK,
        send_counts=[local * slots] * axis.size,
        receive_counts=receive_counts,
        groups=RowGroups.equal(local, of_each, device),
        arrival_R=arrival_R,
        is_filled_N=(place_EC < copies.ends_E[:, None]).flatten(),
    )
