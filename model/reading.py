"""Where a pass is read out: its last block need not compute more than these tokens (model/block.py).

Legend: B rows, C candidates, Q read-outs of one reading, R of all, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.batch import Modality, Sequences
from data.movable import sent
from model.layout import SequenceLayout
from parallel.dispatch_plan import Blocks


class BatchError(ValueError):
    """A batch does not go with an option of the network, which says what to change."""

    of_one_rank = True


@dataclasses.dataclass(frozen=True)
class Reading:
    """Sequences and where to read them: read_Q2 holds (row, position) pairs, sorted by row. projected: features are those of the space in
    which inputs and candidates are compared, and not the encoder's own, normalised by its last LayerNorm. host_Q2: read_Q2 on the host,
    where it is known there. task, rows_B: of candidates that data ranks encode together, their own task and the numbers of their rows,
    by which they draw noise."""

    sequences: Sequences
    read_Q2: Tensor
    is_target: bool = False
    projected: bool = True
    host_Q2: np.ndarray | None = None
    task: int | None = None
    rows_B: Tensor | None = None

    @classmethod
    def of_targets(cls, sequences: Sequences, task: int | None = None, rows_B: Tensor | None = None) -> Reading:
        """Candidates, every row read at its <SPE> token."""
        row_C = torch.arange(sequences.num_rows, device=sequences.segments[0].valid_BL.device)
        read_C2 = torch.stack([row_C, torch.zeros_like(row_C)], dim=1)
        host_C2 = np.stack([np.arange(sequences.num_rows), np.zeros(sequences.num_rows, dtype=np.int64)], axis=1)
        return cls(sequences, read_C2, is_target=True, host_Q2=host_C2, task=task, rows_B=rows_B)

    @property
    def is_text(self) -> bool:
        return self.sequences.segments[0].modality == Modality.TEXT

    def on_host(self) -> np.ndarray:
        """read_Q2; a device is waited for where the host does not know it."""
        return self.read_Q2.cpu().numpy() if self.host_Q2 is None else self.host_Q2

    def chunk(self, index: int, count: int) -> Reading:
        """The index-th of `count` parts, cut between rows."""
        rows = self.sequences.num_rows
        if rows < count:
            raise BatchError(f"model.chunks={count} is more than the {rows} rows of a batch: lower it")
        start, end = rows * index // count, rows * (index + 1) // count
        part = self.sequences.rows(slice(start, end))
        host_Q2 = self.on_host()
        first, last = (int(np.searchsorted(host_Q2[:, 0], row)) for row in (start, end))
        row_Q, place_Q = self.read_Q2[first:last].unbind(1)
        read_Q2 = torch.stack([row_Q - start, place_Q], dim=1)
        rows_B = None if self.rows_B is None else self.rows_B[start:end]
        host_Q2 = host_Q2[first:last] - np.array([start, 0])
        return dataclasses.replace(self, sequences=part, read_Q2=read_Q2, host_Q2=host_Q2, rows_B=rows_B)


@dataclasses.dataclass(frozen=True)
class ReadTokens:
    """The tokens that the readings of a pass want, reading by reading.

    token_R    their numbers in the pass; where experts are merged those of a group stand together, as in the pass
    blocks     (first, after the last, group) of each group that is read
    back       of each reading where each read-out is among its tokens; None: in order
    """

    token_R: Tensor
    blocks: Blocks
    back: tuple[Tensor | None, ...]
    counts: tuple[int, ...]

    def of_each(self, x_RD: Tensor) -> tuple[Tensor, ...]:
        """[Q, D] of each reading, in its order."""
        parts = x_RD.split(list(self.counts))
        return tuple(
            part_QD if back_Q is None else part_QD.index_select(0, back_Q)
            for part_QD, back_Q in zip(parts, self.back, strict=True)
        )


def read_tokens(readings: Sequence[Reading], layouts: Sequence[SequenceLayout]) -> ReadTokens:
    """layouts: of each reading's sequences in the pass."""
    tokens: list[Tensor] = []
    back: list[Tensor | None] = []
    blocks: list[tuple[int, int, int]] = []
    groups_before = 0
    for reading, layout in zip(readings, layouts, strict=True):
        row_Q, place_Q = reading.read_Q2.unbind(1)
        token_Q, back_Q = layout.tokens_at(row_Q * layout.tokens.length + place_Q), None
        if layout.by_group:
            group_Q = layout.tokens.group_L[reading.on_host()[:, 1]]
            if len(group_Q) and (group_Q[:-1] > group_Q[1:]).any():
                order_Q = np.argsort(group_Q, kind="stable")
                group_Q = group_Q[order_Q]
                token_Q = token_Q.index_select(0, sent(torch.from_numpy(order_Q), token_Q.device))
                back_Q = sent(torch.from_numpy(np.argsort(order_Q)), token_Q.device)
            for group, count in zip(*np.unique(group_Q, return_counts=True), strict=True):
                start = blocks[-1][1] if blocks else 0
                blocks.append((start, start + int(count), groups_before + int(group)))
        tokens.append(token_Q)
        back.append(back_Q)
        groups_before += len(layout.tokens.groups)
    counts = tuple(len(token_Q) for token_Q in tokens)
    return ReadTokens(torch.cat(tokens) if len(tokens) > 1 else tokens[0], tuple(blocks), tuple(back), counts)
