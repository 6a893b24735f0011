"""Captioning in the double-token layout: [SPE | visual | words | queries]; query t sees the words before t (papers.md 1.5)."""

from __future__ import annotations

import numpy as np
import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL
from data.batch import Sequences, TaskBatch, Visibility
from data.config import TaskConfig
from data.seeding import rng
from data.tasks.base import Captioned, CaptionedTask, WordTask
from data.tasks.segments import readout_segment, text_segment


class Captioning(CaptionedTask, WordTask):
    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return 2 * config.max_text

    @classmethod
    def read_outs(cls, config: TaskConfig) -> int:
        return config.max_text

    @property
    def default_temperature(self) -> str:
        return "caption"

    def prefix(self, examples: list[Captioned]) -> Sequences:
        """What generation starts from: the visual tokens alone, with the attributes that they have in training."""
        return Sequences(segments=(self.visual_segment([e.visual for e in examples], CAPTION_VISUAL),))

    def batch(self, examples: list[Captioned], generator: np.random.Generator | None) -> TaskBatch:
        words = text_segment([e.tokens for e in examples], CAPTION_TEXT, Visibility.CAUSAL)
        queries = readout_segment([len(e.tokens) for e in examples], self.vocabulary.spe, CAPTION_TEXT)
        visual = self.prefix(examples).segments[0]
        first_query = 1 + visual.valid_BL.shape[1] + words.valid_BL.shape[1]
        read_Q2 = queries.valid_BL.nonzero() + torch.tensor([0, first_query])
        sample = 0 if generator is None else self.context.vocabulary_sample
        tokens = [token for e in examples for token in e.tokens]
        targets = self.words.targets(tokens, sample, generator or rng(0))
        return TaskBatch(
            task=self.config.name,
            inputs=Sequences(segments=(visual, words, queries)),
            read_Q2=read_Q2,
            candidates=targets.candidates,
            candidate_log_weights_C=targets.log_weights_C,
            labels_Q=targets.labels_Q,
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing if targets.log_weights_C is None else 0.0,
        )
