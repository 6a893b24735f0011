"""What the encoder must know about the tokens of a pass: which sequence, row and group each belongs to, and who sees whom.

A pass holds the valid tokens of all its sequences (inputs and candidates) one after another, [T, D]; pads are nowhere but inside of
attention. Within sequences tokens stand row by row, or, where experts are merged, group by group, so that each group's tokens are one
block of rows for a product. All lengths are known on the host (data/token_layout.py), so a device is asked for nothing.
Legend: T tokens, B rows, L places of a row (<SPE> first), C routing groups of all sequences, A attribute bits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from data.attributes import Attributes
from data.batch import Modality, Sequences, Visibility
from data.token_layout import Part, TokenLayout, token_layout
from model.noise import Key, derive, mixed
from parallel.dispatch_plan import Blocks


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
    """Of one of a pass's sequences: its tokens are start ... start + T_s - 1.

    mask         [B, 1, 1 or L, L] or with more places in front that are there already: True where a place may look at another; None if
                 everyone sees everyone
    by_group     tokens stand group by group
    is_packed    attention takes its rows one after another, without pads and mask
    task         id of the task, for routers that tell tasks apart
    is_target    candidates, not inputs
    noise        key of its random numbers
    rows_B       of candidates that data ranks encode together: numbers of the rows, by which they draw
    """

    tokens: TokenLayout
    start: int
    mask: Tensor | None
    by_group: bool = False
    is_packed: bool = False
    task: int = 0
    is_target: bool = False
    noise: Key = None
    rows_B: Tensor | None = None

    @property
    def end(self) -> int:
        return self.start + self.tokens.num_tokens

    @property
    def is_plain(self) -> bool:
        """All places are tokens, in order."""
        return self.tokens.is_full and not self._moves

    @property
    def _moves(self) -> bool:
        return self.by_group and self.tokens.by_group_T is not None

    def ordered(self, x_T: Tensor) -> Tensor:
        """What is known row by row, in the order of the pass."""
        return x_T.index_select(0, self.tokens.by_group_T) if self._moves else x_T  # type: ignore[arg-type]

    @functools.cached_property
    def place_T(self) -> Tensor:
        """Of each token in [B x L]."""
        return self.ordered(self.tokens.place_T)

    def attention_bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as what is added to scores: 0 or -inf. Made once for all layers of a pass."""
        if self.mask is None:
            return None
        if dtype not in self._biases:
            # Rows of multiples of eight numbers, as fused attention wants them.
            hidden = pad(~self.mask, (0, -self.mask.shape[-1] % 8))
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)
            self._biases[dtype] = bias[..., : self.mask.shape[-1]]
        return self._biases[dtype]

    @functools.cached_property
    def _biases(self) -> dict[torch.dtype, Tensor]:
        return {}

    @functools.cached_property
    def row_T(self) -> Tensor:
        return self.place_T.div(self.tokens.length, rounding_mode="floor")

    @functools.cached_property
    def group_T(self) -> Tensor:
        return self.ordered(self.tokens.group_T)

    def placed(self, x_TF: Tensor) -> Tensor:
        """[T, F] -> [B, L, F], zero at pads."""
        rows, length = self.tokens.rows, self.tokens.length
        x_PF = x_TF if self.is_plain else _Placed.apply(x_TF, self.place_T, rows * length)
        return x_PF.view(rows, length, -1)

    def taken(self, x_BLF: Tensor) -> Tensor:
        """[B, L, F] -> [T, F], the tokens."""
        x_PF = x_BLF.flatten(0, 1)
        return x_PF if self.is_plain else take_tokens(x_PF, self.place_T)

    def tokens_at(self, places_Q: Tensor) -> Tensor:
        """The token, counted in the pass, at each place of [B x L]; it must not be a pad."""
        if self.is_plain:
            return places_Q + self.start
        token_P = self.place_T.new_zeros(self.tokens.rows * self.tokens.length)
        numbers_T = torch.arange(self.start, self.end, device=token_P.device)
        return token_P.index_copy_(0, self.place_T, numbers_T).index_select(0, places_Q)


@dataclasses.dataclass(frozen=True)
class PassLayout:
    """slots_S: of an expert on each expert rank, where rows travel in slots; else empty."""

    sequences: tuple[SequenceLayout, ...]
    slots_S: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.sequences[-1].end

    @property
    def device(self) -> torch.device:
        return self.sequences[0].tokens.place_T.device

    @property
    def draws(self) -> bool:
        """Has the pass random numbers? It has none in evaluation."""
        return self.sequences[0].noise is not None

    @property
    def tokens_C(self) -> tuple[int, ...]:
        return tuple(count for sequence in self.sequences for count in sequence.tokens.tokens_G)

    @property
    def blocks(self) -> Blocks:
        """(first token, token after the last, group) of each group, where tokens stand group by group."""
        found, start = [], 0
        for group, count in enumerate(self.tokens_C):
            found.append((start, start + count, group))
            start += count
        return tuple(found)

    @property
    def first_groups(self) -> tuple[int, ...]:
        """Of each sequence the group of <SPE>."""
        numbers = [len(sequence.tokens.groups) for sequence in self.sequences]
        return tuple(sum(numbers[:index]) for index in range(len(numbers)))

    @functools.cached_property
    def count_C(self) -> Tensor:
        """tokens_C on the device."""
        return _joined([sequence.tokens.count_G for sequence in self.sequences])

    @functools.cached_property
    def tokens_M(self) -> Tensor:
        """Tokens of each modality, float64."""
        counts_C = self.count_C.double()
        return counts_C.new_zeros(len(Modality)).index_add_(0, self.modality_C, counts_C)

    @functools.cached_property
    def attributes_CA(self) -> Tensor:
        return _joined([sequence.tokens.attributes_GA for sequence in self.sequences])

    @functools.cached_property
    def modality_C(self) -> Tensor:
        return _joined([sequence.tokens.modality_G for sequence in self.sequences])

    @functools.cached_property
    def task_C(self) -> Tensor:
        return _joined([torch.full_like(s.tokens.modality_G, s.task) for s in self.sequences])

    @functools.cached_property
    def modality_T(self) -> Tensor:
        return _joined([s.tokens.modality_G.index_select(0, s.group_T) for s in self.sequences])

    @functools.cached_property
    def share_T2(self) -> Tensor:
        """Each text token's share of all text tokens, and each visual one's of those, fp32; 0 elsewhere."""
        is_text_T = self.modality_T == Modality.TEXT
        is_of_T2 = torch.stack([is_text_T, ~is_text_T], dim=1).float()
        return is_of_T2 / is_of_T2.sum(dim=0).clamp(min=1)

    @functools.cached_property
    def row_T(self) -> Tensor:
        """Rows of all sequences, counted on."""
        parts, seen = [], 0
        for sequence in self.sequences:
            parts.append(sequence.row_T + seen if seen else sequence.row_T)
            seen += sequence.tokens.rows
        return _joined(parts)

    @functools.cached_property
    def counter_T(self) -> Tensor:
        """For the random numbers of tokens, as of rows and groups: the same whatever else is in the pass."""
        return _joined([_token_counter(sequence) for sequence in self.sequences])

    @functools.cached_property
    def counter_R(self) -> Tensor:
        return _joined([_row_counter(sequence) for sequence in self.sequences])

    @functools.cached_property
    def counter_C(self) -> Tensor:
        device = self.device
        return _joined(
            [torch.arange(len(s.tokens.groups), device=device) + _counter(s, _name_of(s)) for s in self.sequences]
        )

    def each(self, x_TF: Tensor) -> tuple[Tensor, ...]:
        """The tokens of each sequence."""
        return (
            x_TF.split([sequence.tokens.num_tokens for sequence in self.sequences])
            if len(self.sequences) > 1
            else (x_TF,)
        )


def layout_of(
    sequences: Sequences,
    start: int = 0,
    by_group: bool = False,
    packs: bool = False,
    **known: int | bool | Tensor | None,
) -> SequenceLayout:
    """Of sequences that are part of a pass. packs: attention can do without pads, where pads alone are hidden and tokens stand row by row.
    known: task, is_target, noise, rows_B."""
    tokens = sequences.located().layout
    assert tokens is not None
    in_rows = not (by_group and tokens.by_group_T is not None)
    is_packed = packs and in_rows and not tokens.is_full and not _hides_words(sequences)
    mask = None if is_packed else _mask_of(sequences, tokens)
    return SequenceLayout(tokens, start, mask, by_group, is_packed, **known)  # type: ignore[arg-type]


def layout_of_groups(groups: Sequence[tuple[Attributes, int]], task: int) -> PassLayout:
    """One token of each group (attributes, modality), for routers that look at groups alone."""
    one, none = np.ones((1, 1), dtype=bool), np.zeros(1, dtype=np.int64)
    parts = [Part(one, attributes, modality, Visibility.PREFIX, none) for attributes, modality in groups]
    return PassLayout((SequenceLayout(token_layout(parts, with_spe=False), 0, None, task=task),))


def _mask_of(sequences: Sequences, tokens: TokenLayout) -> Tensor | None:
    if _hides_words(sequences):
        return attention_mask(sequences)[:, None]
    return None if tokens.is_full else _valid_BL(sequences)[:, None, None]


def _hides_words(sequences: Sequences) -> bool:
    """Does not everyone see every token?"""
    return any(segment.visibility != Visibility.PREFIX for segment in sequences.segments)


def _valid_BL(sequences: Sequences) -> Tensor:
    first = sequences.segments[0].valid_BL
    return torch.cat([first.new_ones(first.shape[0], 1), *(s.valid_BL for s in sequences.segments)], dim=1)


def attention_mask(sequences: Sequences) -> Tensor:
    """mask[b, i, j]: may place i look at place j? (papers.md 1.5, the double-token layout)"""
    valid_BL = _valid_BL(sequences)
    device, batch = valid_BL.device, valid_BL.shape[0]
    kinds = [torch.full((1,), Visibility.PREFIX, device=device)]
    orders = [torch.zeros(batch, 1, dtype=torch.long, device=device)]
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


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _counter(sequence: SequenceLayout, what: str) -> int:
    """Where a sequence's counters begin: far from those of others."""
    assert sequence.noise is not None, "evaluation draws nothing"
    return derive(sequence.noise, what)


def take_tokens(x_PF: Tensor, place_T: Tensor) -> Tensor:
    """[T, F] from their places, of which no two are one."""
    taken: Tensor = _Taken.apply(x_PF, place_T)
    return taken


def _name_of(sequence: SequenceLayout) -> str:
    """Of all that group routers decide by."""
    return repr((sequence.task, sequence.tokens.groups))


def _row_counter(sequence: SequenceLayout) -> Tensor:
    start = _counter(sequence, "row")
    if sequence.rows_B is not None:
        return sequence.rows_B + start
    return torch.arange(sequence.tokens.rows, device=sequence.place_T.device) + start


def _token_counter(sequence: SequenceLayout) -> Tensor:
    if sequence.rows_B is None:
        return sequence.place_T + _counter(sequence, "token")
    column_T = sequence.place_T % sequence.tokens.length
    return mixed(sequence.rows_B + _counter(sequence, "token")).index_select(0, sequence.row_T) + column_T


class _Placed(torch.autograd.Function):
    """Tokens to places that are zero elsewhere; the backward pass takes them. No two tokens have one place."""

    @staticmethod
    def forward(ctx, x_TF, place_T, num_places):
        ctx.save_for_backward(place_T)
        return x_TF.new_zeros(num_places, x_TF.shape[1]).index_copy_(0, place_T, x_TF)

    @staticmethod
    def backward(ctx, grad_PF):
        return grad_PF.index_select(0, ctx.saved_tensors[0]), None, None


class _Taken(torch.autograd.Function):
    """Places to tokens; the inverse."""

    @staticmethod
    def forward(ctx, x_PF, place_T):
        ctx.save_for_backward(place_T)
        ctx.num_places = x_PF.shape[0]
        return x_PF.index_select(0, place_T)

    @staticmethod
    def backward(ctx, grad_TF):
        place_T = ctx.saved_tensors[0]
        return grad_TF.new_zeros(ctx.num_places, grad_TF.shape[1]).index_copy_(0, place_T, grad_TF), None
