"""Candidate sets that data ranks encode together (data/batch.py: CandidateSet), 1/N of each set on each of N ranks.

    sets of a micro-step --own parts, by kind--> readings beside the rank's own inputs, in one pass
        --features [R, W]--> one all-gather with gradient --> of_set: features [C, W] of the set that the rank's batch asks for

All ranks have the same sets in one order, so all issue the same gather, also those whose batches ask for none of them. Sets of one
kind (task, attributes, visibility), between which no router tells, stand in one sequence batch: merged experts are summed once for them.
Legend: N data ranks, R rows that a rank encodes, C candidates of a set, W width of the compared features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from data.batch import CandidateSet, Sequences
from data.token_layout import joined_rows
from model.reading import Reading
from parallel.collectives import Axis, all_gather

MAX_ROWS = 1 << 32
"""Candidates of a set."""


@dataclasses.dataclass(frozen=True)
class SharedParts:
    """readings: this rank's parts, one for each kind. places: of each set, the first of its rows among those of all readings, rows of this
    rank, and candidates in all."""

    readings: tuple[Reading, ...]
    places: tuple[tuple[int, int, int], ...]
    axis: Axis

    def gathered(self, features: Sequence[Tensor]) -> Tensor:
        """Features [R, W] of the readings -> [N, R, W] of all ranks. Collective; backward every rank gets the sum of all ranks' gradients
        of its rows."""
        return all_gather(torch.cat(tuple(features)), self.axis)

    def of_set(self, features_NRW: Tensor, index: int) -> Tensor:
        """-> [C, W] of one set."""
        first, each, total = self.places[index]
        return features_NRW[:, first : first + each].flatten(0, 1)[:total]


def shared_parts(sets: Sequence[CandidateSet], axis: Axis, task_id: Callable[[str], int], least: int) -> SharedParts:
    """least: rows that every part has at least, so that it can be cut into as many chunks."""
    kinds: dict[tuple, list[int]] = {}
    for index, of_all in enumerate(sets):
        (segment,) = of_all.candidates.segments
        kind = (task_id(of_all.task), segment.modality, segment.visibility, segment.attributes)
        kinds.setdefault(kind, []).append(index)
    readings: list[Reading] = []
    places: dict[int, tuple[int, int, int]] = {}
    first = 0
    for (task, *_), members in kinds.items():
        parts: list[Sequences] = []
        ids: list[Tensor] = []
        for index in members:
            total = sets[index].candidates.num_rows
            each = max(math.ceil(total / axis.size), least)
            parts.append(_part(sets[index].candidates, axis.rank * each, each))
            device = parts[-1].segments[0].valid_BL.device
            numbers = torch.arange(axis.rank * each, (axis.rank + 1) * each, device=device).clamp(max=total - 1)
            ids.append(numbers + sets[index].number * MAX_ROWS)
            places[index] = (first, each, total)
            first += each
        sequences = joined(parts)
        readings.append(Reading.of_targets(sequences, task, torch.cat(ids)))
    return SharedParts(tuple(readings), tuple(places[index] for index in range(len(sets))), axis)


def _part(candidates: Sequences, first: int, count: int) -> Sequences:
    """Equally many on all ranks, so the last ones repeat the last candidate."""
    if first == 0 and count == candidates.num_rows:
        return candidates
    return candidates.rows(np.arange(first, first + count).clip(max=candidates.num_rows - 1))


def joined(parts: Sequence[Sequences]) -> Sequences:
    """Rows of one segment, one after another, padded to the longest; with a layout where all have one."""
    if len(parts) == 1:
        return parts[0]
    segments = [part.segments[0] for part in parts]
    longest = max(segment.valid_BL.shape[1] for segment in segments)

    def padded(name: str) -> Tensor:
        tensors = [getattr(segment, name) for segment in segments]
        return torch.cat([pad(t, (0, 0) * (t.dim() - 2) + (0, longest - t.shape[1])) for t in tensors])

    segment = dataclasses.replace(
        segments[0], values=padded("values"), positions=padded("positions"), valid_BL=padded("valid_BL")
    )
    layouts = [part.layout for part in parts if part.layout is not None]
    layout = joined_rows(layouts) if len(layouts) == len(parts) else None
    return Sequences(segments=(segment,), layout=layout)
