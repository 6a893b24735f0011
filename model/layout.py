"""What the encoder must know about a batch of sequences besides the embedded tokens: mask, groups, padding.

Legend: B rows, L positions (<SPE> first), G routing groups, A attribute bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from data.attributes import Attributes
from data.batch import Modality, Sequences, Visibility

MAX_LENGTH = 1 << 16
"""Tokens of a candidate."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Positions start..end of every row belong to routing group `group`."""

    start: int
    end: int
    group: int


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
    """
    valid_BL       False at padding
    mask_BLL       True where row attends to column, None if everyone sees everyone
    spans          cover 0..L in order; tokens of a group share their attribute vector and modality
    attributes_GA  bit vector of each group
    modality_G     modality of each group
    prefix_L       True at positions that everyone sees
    task           id of the task, for routers that tell tasks apart
    is_target      candidates, not inputs
    shared_B       of candidates that data ranks encode together: numbers of the rows, by which they draw noise
    name           of all that group routers decide by: task, attributes, modality
    """

    valid_BL: Tensor
    mask_BLL: Tensor | None
    spans: tuple[Span, ...]
    attributes_GA: Tensor
    modality_G: Tensor
    prefix_L: Tensor
    task: int = 0
    is_target: bool = False
    shared_B: Tensor | None = None
    name: str = ""

    @functools.cached_property
    def is_full(self) -> bool:
        """No padding. Asked once a pass: a device has to be waited for."""
        return bool(self.valid_BL.all())

    @functools.cached_property
    def place_T(self) -> Tensor:
        """Places of the valid tokens in [B x L]."""
        return self.valid_BL.flatten().nonzero().squeeze(1)

    @property
    def shared_T(self) -> Tensor | None:
        """Numbers of the valid tokens of such rows, which draw noise of their own."""
        if self.shared_B is None:
            return None
        length = self.valid_BL.shape[1]
        ids_BL = self.shared_B[:, None] * MAX_LENGTH + torch.arange(length, device=self.shared_B.device)
        return ids_BL[self.valid_BL]

    def with_prompts(self, count: int) -> SequenceLayout:
        """The layout of keys and values: `count` prompts stand before the tokens, in the first token's group."""
        first, *others = self.spans
        batch = self.valid_BL.shape[0]
        seen = self.valid_BL.new_ones(batch, count)
        mask_BLL = self.mask_BLL
        if mask_BLL is not None:
            mask_BLL = torch.cat([mask_BLL.new_ones(*mask_BLL.shape[:2], count), mask_BLL], dim=2)
        return dataclasses.replace(
            self,
            valid_BL=torch.cat([seen, self.valid_BL], dim=1),
            mask_BLL=mask_BLL,
            spans=(
                Span(0, first.end + count, first.group),
                *(Span(span.start + count, span.end + count, span.group) for span in others),
            ),
            prefix_L=torch.cat([seen[0], self.prefix_L]),
        )

    @property
    def modality_BL(self) -> Tensor:
        lengths_S = torch.tensor([span.end - span.start for span in self.spans], device=self.modality_G.device)
        groups_S = torch.tensor([span.group for span in self.spans], device=self.modality_G.device)
        total = self.valid_BL.shape[1]
        modality_L = self.modality_G[groups_S].repeat_interleave(lengths_S, output_size=total)
        return modality_L.expand(self.valid_BL.shape)


def layout_of(
    sequences: Sequences, task: int = 0, is_target: bool = False, shared_B: Tensor | None = None
) -> SequenceLayout:
    """The <SPE> token joins the group of the first segment and is a PREFIX token."""
    first = sequences.segments[0].valid_BL
    valid_BL = torch.cat([first.new_ones(first.shape[0], 1), *(s.valid_BL for s in sequences.segments)], dim=1)
    plain = all(segment.visibility == Visibility.PREFIX for segment in sequences.segments)
    mask_BLL = None if plain and bool(valid_BL.all()) else attention_mask(sequences, valid_BL)

    groups: list[tuple[Attributes, Modality]] = []
    spans: list[Span] = []
    prefix = [True]
    end = 1
    for segment in sequences.segments:
        key = (segment.attributes, segment.modality)
        if key not in groups:
            groups.append(key)
        group = groups.index(key)
        prefix += [segment.visibility == Visibility.PREFIX] * segment.valid_BL.shape[1]
        start, end = (end if spans else 0), end + segment.valid_BL.shape[1]
        if spans and spans[-1].group == group:
            spans[-1] = Span(spans[-1].start, end, group)
        else:
            spans.append(Span(start, end, group))
    device = valid_BL.device
    return SequenceLayout(
        valid_BL=valid_BL,
        mask_BLL=mask_BLL,
        spans=tuple(spans),
        attributes_GA=torch.tensor([attributes for attributes, _ in groups], dtype=torch.float32, device=device),
        modality_G=torch.tensor([modality for _, modality in groups], device=device),
        prefix_L=torch.tensor(prefix, device=device),
        task=task,
        is_target=is_target,
        shared_B=shared_B,
        name=repr((task, [(attributes, int(modality)) for attributes, modality in groups])),
    )


def attention_mask(sequences: Sequences, valid_BL: Tensor) -> Tensor:
    """mask[b, i, j]: may position i look at position j? (papers.md 1.5, the double-token layout)"""
    device = valid_BL.device
    batch = valid_BL.shape[0]
    kinds, orders = (
        [torch.tensor([Visibility.PREFIX], device=device)],
        [torch.zeros(batch, 1, dtype=torch.long, device=device)],
    )
    for segment in sequences.segments:
        length = segment.valid_BL.shape[1]
        kinds.append(torch.full((length,), segment.visibility, device=device))
        ordered = segment.visibility != Visibility.PREFIX
        orders.append(segment.positions if ordered else torch.zeros(batch, length, dtype=torch.long, device=device))
    kind_L, order_BL = torch.cat(kinds), torch.cat(orders, dim=1)

    column_prefix = kind_L == Visibility.PREFIX
    column_causal = kind_L == Visibility.CAUSAL
    row_causal = (kind_L == Visibility.CAUSAL)[:, None]
    row_readout = (kind_L == Visibility.READOUT)[:, None]
    earlier = order_BL[:, None, :] < order_BL[:, :, None]
    same = order_BL[:, None, :] == order_BL[:, :, None]
    sees_word = column_causal & ((row_causal & (earlier | same)) | (row_readout & earlier))
    itself = torch.eye(kind_L.shape[0], dtype=torch.bool, device=device)
    # A padded row looks at itself, so that no row of the softmax is empty.
    return (column_prefix | sees_word) & valid_BL[:, None, :] | itself


def position_major(x_BLD: Tensor) -> Tensor:
    """The same tensor, in memory position by position: a span of positions is then one block, which a product can read
    without a copy. No copy if it is so already."""
    return x_BLD.transpose(0, 1).contiguous().transpose(0, 1)


def in_storage_order(function: Callable[[Tensor], Tensor], x_BLD: Tensor) -> Tensor:
    """A function of single tokens, applied without changing the order in memory."""
    x_LBD = x_BLD.transpose(0, 1)
    return function(x_LBD).transpose(0, 1) if x_LBD.is_contiguous() else function(x_BLD)
