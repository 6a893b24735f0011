"""Answers that are written word by word in place of ranked: the class name is the caption of the input (`answer: generate`).

This is how sequence-to-sequence generalists (OFA, Gato) answer; everything else stays, so the two ways can be compared in one run.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, QUESTION_TEXT, TEXT_INPUT, WRITTEN_TEXT, Attributes
from data.batch import Sequences, TaskBatch, Visibility
from data.config import TaskConfig
from data.tasks.base import TaskContext, WordTask
from data.tasks.classification import Classification
from data.tasks.segments import readout_segment, text_segment
from data.tasks.text_classification import TextClassification
from data.tasks.vqa import VisualQuestionAnswering


class WritingTask(WordTask):
    """Writes after what it is shown, in the double-token layout: [SPE | prefix | words | queries]; query t sees the words before t
    (papers.md 1.5)."""

    written_attributes: ClassVar[Attributes] = CAPTION_TEXT

    @classmethod
    def read_outs(cls, config: TaskConfig) -> int:
        return config.max_text

    @property
    def default_temperature(self) -> str:
        return "caption"

    @abc.abstractmethod
    def prefix(self, examples: list[Any]) -> Sequences:
        """What writing starts from, with the attributes that it has in training."""

    @abc.abstractmethod
    def written(self, example: Any) -> list[int]:
        """Tokens to write, end-of-text included."""

    def batch(self, examples: list[Any], generator: np.random.Generator | None) -> TaskBatch:
        rows = [self.written(example) for example in examples]
        words = text_segment(rows, self.written_attributes, Visibility.CAUSAL)
        queries = readout_segment([len(row) for row in rows], self.vocabulary.spe, self.written_attributes)
        prefix = self.prefix(examples)
        first_query = prefix.length + words.valid_BL.shape[1]
        inputs = Sequences(segments=(*prefix.segments, words, queries))
        read_Q2 = queries.valid_BL.nonzero() + torch.tensor([0, first_query])
        return self.word_batch(inputs, read_Q2, [token for row in rows for token in row], generator)


class _WrittenClass(WritingTask):
    """Stands before a task with classes, of which it takes what an example is."""

    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return super().text_tokens(config) + 2 * config.max_text

    @classmethod
    def check(cls, config: TaskConfig) -> None:
        super().check(config)
        if config.views != (1, 1):
            raise ValueError(f"task {config.name}: views are averaged over similarities, which answer=generate has not")

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.names = [self.vocabulary.encode(name, self.config.max_text) for name in context.info.classes]

    @property
    def longest_name(self) -> int:
        """Tokens."""
        return max(map(len, self.names))

    def written(self, example: Any) -> list[int]:
        return self.names[example.label]


class WrittenClassification(_WrittenClass, Classification):
    def prefix(self, examples: list[Any]) -> Sequences:
        return Sequences(segments=(self.visual_segment([e.visual for e in examples], CAPTION_VISUAL),))


class WrittenTextClassification(_WrittenClass, TextClassification):
    """The text stands in its template as where names are ranked, <spe> included."""

    written_attributes = WRITTEN_TEXT

    def prefix(self, examples: list[Any]) -> Sequences:
        return Sequences(segments=(text_segment([e.tokens for e in examples], TEXT_INPUT),))


class WrittenVisualQuestionAnswering(_WrittenClass, VisualQuestionAnswering):
    def prefix(self, examples: list[Any]) -> Sequences:
        visual = self.visual_segment([e.visual for e in examples], CAPTION_VISUAL)
        return Sequences(segments=(visual, text_segment([e.tokens for e in examples], QUESTION_TEXT)))
