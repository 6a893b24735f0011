"""Made batches of a preset's full size, for benchmarks that need no data: nominal shapes, texts as long as they may be, random contents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, NAME_TARGET, TEXT_INPUT, VISUAL_INPUT
from data.batch import Modality, Segment, Sequences, TaskBatch, Visibility
from model.config import ModelConfig
from plan.tasks import SequenceShape, TaskLoad

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "presets"
NAMES, NAME_LENGTH = 1000, 8
"""Of classes, where their data set is not here to be counted; <SPE> included."""


def batch_of(model: ModelConfig, load: TaskLoad, vocabulary_size: int) -> TaskBatch:
    """Of the task, on one rank; the same numbers each time."""
    inputs, candidates = load.passes(1)[:2]
    if not candidates.length:  # the data set that has the names is not here
        candidates = dataclasses.replace(candidates, rows=NAMES, reads=NAMES, length=NAME_LENGTH)
    made = Contents(model, vocabulary_size, torch.Generator().manual_seed(0))
    places = np.linspace(1, inputs.length - 1, max(1, inputs.reads // inputs.rows), dtype=int)
    rows = np.repeat(np.arange(inputs.rows), len(places))
    read_Q2 = torch.from_numpy(np.stack([rows, np.tile(places, inputs.rows)], axis=1))
    symmetric = load.symmetric and candidates.rows == len(read_Q2)
    batch = TaskBatch(
        task=model.tasks[0] if model.tasks else "task",
        inputs=made.sequences(inputs, is_target=False),
        read_Q2=read_Q2,
        candidates=made.sequences(candidates, is_target=True),
        labels_Q=torch.arange(len(read_Q2)) % candidates.rows,
        temperature=model.temperatures[0],
        symmetric=symmetric,
    )
    return batch.located()


@dataclasses.dataclass(frozen=True)
class Contents:
    """Segments with random pixels and words, so that tokens spread over experts."""

    model: ModelConfig
    vocabulary_size: int
    generator: torch.Generator

    def sequences(self, shape: SequenceShape, is_target: bool) -> Sequences:
        segments, text = [], shape.length - 1 - shape.visual
        if shape.visual:
            segments.append(self._visual(shape.rows, shape.visual, CAPTION_VISUAL if text else VISUAL_INPUT))
        if text and shape.visual:
            for length, visibility in ((text // 2, Visibility.CAUSAL), (text - text // 2, Visibility.READOUT)):
                segments.append(self._text(shape.rows, length, visibility, CAPTION_TEXT))
        elif text:
            attributes = NAME_TARGET if is_target else TEXT_INPUT
            segments.append(self._text(shape.rows, text, Visibility.PREFIX, attributes))
        return Sequences(segments=tuple(segments))

    def _visual(self, rows: int, patches: int, attributes: Any) -> Segment:
        side = self.model.image_size // self.model.patch
        frames = -(-patches // side**2)
        grid_L3 = torch.cartesian_prod(torch.arange(frames), torch.arange(side), torch.arange(side))[:patches]
        positions_BL3 = grid_L3.expand(rows, patches, 3).contiguous()
        size = (rows, patches, self.model.patch_values)
        values = torch.randint(0, 256, size, generator=self.generator, dtype=torch.uint8)
        modality = Modality.IMAGE if frames == 1 else Modality.VIDEO
        return _segment(modality, values, positions_BL3, Visibility.PREFIX, attributes)

    def _text(self, rows: int, length: int, visibility: Visibility, attributes: Any) -> Segment:
        words = torch.randint(0, self.vocabulary_size - 1, (rows, length), generator=self.generator)  # without <SPE>
        positions = torch.arange(length).expand(rows, length).contiguous()
        return _segment(Modality.TEXT, words, positions, visibility, attributes)


def _segment(modality: Modality, values: Tensor, positions: Tensor, visibility: Visibility, attributes: Any) -> Segment:
    return Segment(
        modality=modality,
        values=values,
        positions=positions,
        valid_BL=torch.ones(values.shape[:2], dtype=torch.bool),
        visibility=visibility,
        attributes=attributes,
    )
