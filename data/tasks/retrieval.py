"""Image-text and video-text retrieval: the candidates are the other side of the pairs in the batch (papers.md 1.5)."""

from __future__ import annotations

import numpy as np
import torch

from data.attributes import NAME_TARGET, VISUAL_INPUT
from data.batch import Sequences, TaskBatch
from data.tasks.base import Captioned, CaptionedTask
from data.tasks.segments import text_segment


class Retrieval(CaptionedTask):
    answers = "pairs"

    @property
    def default_temperature(self) -> str:
        return "retrieval"

    def texts(self, captions: list[str]) -> Sequences:
        """Captions as the retrieved side."""
        rows = [self.vocabulary.encode(caption, self.config.max_text) for caption in captions]
        return Sequences(segments=(text_segment(rows, NAME_TARGET),))

    def batch(self, examples: list[Captioned], generator: np.random.Generator | None) -> TaskBatch:
        rows = torch.arange(len(examples))
        texts = text_segment([e.tokens for e in examples], NAME_TARGET)
        return TaskBatch(
            task=self.config.name,
            inputs=Sequences(segments=(self.visual_segment([e.visual for e in examples], VISUAL_INPUT),)),
            read_Q2=torch.stack([rows, torch.zeros_like(rows)], dim=1),
            candidates=Sequences(segments=(texts,)),
            labels_Q=rows,
            symmetric=True,
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing,
        )
