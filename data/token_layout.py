"""Where the valid tokens of sequences stand. Found once, on the host, where a batch is made, so that no pass has to ask a device.

    [B, L] places, <SPE> first  --valid ones, row by row-->  T tokens, which are all that the encoder holds

Legend: B rows, L places of a row, T valid tokens, V valid tokens of one segment, G routing groups, A attribute bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.attributes import Attributes
from data.movable import Movable, sent

PREFIX = 0
"""The visibility of tokens that everyone sees (data/batch.py)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What is known of a segment. valid_BL: on the host. frames_B: how many each row has; 0 for text. visibility: a number."""

    valid_BL: np.ndarray
    attributes: Attributes
    modality: int
    visibility: int
    frames_B: np.ndarray

    def of_rows(self, rows: slice | np.ndarray) -> Part:
        return dataclasses.replace(self, valid_BL=self.valid_BL[rows], frames_B=self.frames_B[rows])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenLayout(Movable):
    """On the host:

    rows, length    B and L
    lengths_B       valid tokens of each row, int64, <SPE> included
    tokens_G        valid tokens of each group
    groups          attributes and modality (number) of each; the tokens of a group share both. <SPE> joins the first segment's
    group_L         the group of each place of a row, <SPE> first
    parts           the segments, of which a layout of some rows can be made

    With the tensors of the batch:

    from_parts_T    the token's place among [B of <SPE>, V of the first segment, V of the second, ...], one after another
    place_T         its place in [B x L]
    group_T         its group
    by_group_T      order of the tokens group by group; None where there is one group
    of_segments     for each segment the places in [B x L of the segment] of its valid tokens, [V]; None where all are
    starts_X        [B + 1], int32: how many valid tokens there are before each row, and in all
    attributes_GA, modality_G, count_G      of each group; the last is tokens_G
    prefix_L        places that everyone sees
    """

    rows: int
    length: int
    lengths_B: np.ndarray
    tokens_G: tuple[int, ...]
    groups: tuple[tuple[Attributes, int], ...]
    group_L: np.ndarray
    parts: tuple[Part, ...]
    from_parts_T: Tensor
    place_T: Tensor
    group_T: Tensor
    by_group_T: Tensor | None
    of_segments: tuple[Tensor | None, ...]
    starts_X: Tensor
    attributes_GA: Tensor
    modality_G: Tensor
    count_G: Tensor
    prefix_L: Tensor

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_G)

    @property
    def is_full(self) -> bool:
        """No padding."""
        return self.num_tokens == self.rows * self.length

    def of_rows(self, rows: slice | np.ndarray) -> TokenLayout:
        """Of some rows, on the same device, which is not waited for."""
        device = self.place_T.device
        return token_layout([part.of_rows(rows) for part in self.parts]).map(lambda tensor: sent(tensor, device))


def joined_rows(layouts: Sequence[TokenLayout]) -> TokenLayout:
    """Of sequences of one segment each, row after row, padded to the longest."""
    parts = [layout.parts[0] for layout in layouts]
    longest = max(part.valid_BL.shape[1] for part in parts)
    valid_BL = np.concatenate([np.pad(p.valid_BL, ((0, 0), (0, longest - p.valid_BL.shape[1]))) for p in parts])
    frames_B = np.concatenate([part.frames_B for part in parts])
    whole = dataclasses.replace(parts[0], valid_BL=valid_BL, frames_B=frames_B)
    device = layouts[0].place_T.device
    return token_layout([whole]).map(lambda tensor: sent(tensor, device))


def token_layout(parts: Sequence[Part], with_spe: bool = True) -> TokenLayout:
    """Of sequences that are made of these segments, with a <SPE> in front, or of tokens that join such sequences."""
    rows, spe = len(parts[0].valid_BL), int(with_spe)
    valid_BL = np.concatenate([np.ones((rows, spe), dtype=bool), *(part.valid_BL for part in parts)], axis=1)
    groups = tuple(dict.fromkeys((part.attributes, part.modality) for part in parts))
    index_BL = np.zeros(valid_BL.shape, dtype=np.int64)
    index_BL[:, :spe] = np.arange(rows)[:, None]
    group_L = np.zeros(valid_BL.shape[1], dtype=np.int64)
    prefix_L = np.ones(valid_BL.shape[1], dtype=bool)
    of_segments: list[Tensor | None] = []
    column, seen = spe, rows * spe
    for part in parts:
        count, length = int(part.valid_BL.sum()), part.valid_BL.shape[1]
        columns = slice(column, column + length)
        index_BL[:, columns][part.valid_BL] = np.arange(seen, seen + count)
        group_L[columns] = groups.index((part.attributes, part.modality))
        prefix_L[columns] = part.visibility == PREFIX
        of_segments.append(None if part.valid_BL.all() else torch.from_numpy(np.flatnonzero(part.valid_BL)))
        column, seen = column + length, seen + count
    place_T = np.flatnonzero(valid_BL)
    group_T = group_L[place_T % valid_BL.shape[1]]
    by_group_T = None if len(groups) == 1 else torch.from_numpy(np.argsort(group_T, kind="stable"))
    count_G = np.bincount(group_T, minlength=len(groups))
    lengths_B = valid_BL.sum(axis=1)
    return TokenLayout(
        rows=rows,
        length=valid_BL.shape[1],
        lengths_B=lengths_B,
        tokens_G=tuple(count_G.tolist()),
        groups=groups,
        group_L=group_L,
        parts=tuple(parts),
        from_parts_T=torch.from_numpy(index_BL.ravel()[place_T]),
        place_T=torch.from_numpy(place_T),
        group_T=torch.from_numpy(group_T),
        by_group_T=by_group_T,
        of_segments=tuple(of_segments),
        starts_X=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int32)),
        attributes_GA=torch.tensor([attributes for attributes, _ in groups], dtype=torch.float32),
        modality_G=torch.tensor([modality for _, modality in groups]),
        count_G=torch.from_numpy(count_G),
        prefix_L=torch.from_numpy(prefix_L),
    )
