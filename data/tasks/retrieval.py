"""Image-text and video-text retrieval: the candidates are the other side of the pairs in the batch (papers.md 1.5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.attributes import NAME_TARGET, VISUAL_INPUT
from data.batch import Scope, Sequences, TaskBatch
from data.tasks.base import Captioned, CaptionedTask, number_of
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
            pairwise=self.config.loss == "sigmoid",
            alike_Q2=_alike(examples, self.scope(generator)),
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing,
        )


def _alike(examples: list[Captioned], scope: Scope) -> Tensor | None:
    """Images by their files, captions by the tokens that the model sees: one image may come with several captions, one caption with
    several images, and a batch that is larger than the data set has both twice."""
    alike_Q2 = torch.tensor([(e.content, number_of(str(e.tokens).encode())) for e in examples], dtype=torch.long)
    distinct = all(len(column.unique()) == len(examples) for column in alike_Q2.T)
    return None if distinct and scope != Scope.GLOBAL else alike_Q2
