"""Classification of text: a template with <spe> in it, read there, compared with label words (GLUE, papers.md 1.5)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch

from data.attributes import TEXT_INPUT, WORD_TARGET
from data.batch import Sequences, TaskBatch
from data.config import TaskConfig
from data.decode.text import decode_json, decode_text
from data.shards.errors import BadSample
from data.tasks.base import Answers, Sample, Task, TaskContext, label_of
from data.tasks.candidates import check_distinct, class_names
from data.tasks.members import member
from data.tasks.segments import text_segment
from data.tasks.template import Template


@dataclasses.dataclass(frozen=True)
class Templated:
    """tokens of the filled template; place: index of <spe> among them; score: what people said, where classes are steps of a scale, and
    else the class number."""

    tokens: list[int]
    place: int
    label: int
    score: float


class TextClassification(Task):
    reads = ("text_class",)
    answers: ClassVar[Answers] = "classes"
    has_pictures = False

    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return config.max_text

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        check_distinct(context.info.classes, context.vocabulary, context.config.max_text, context.config.name)
        self.candidates = class_names(context.info.classes, context.vocabulary, context.config.max_text, WORD_TARGET)
        self.template = Template(context.config.template, context.vocabulary, context.config.max_text)

    @property
    def kept_candidates(self) -> tuple[Sequences, ...]:
        return (self.candidates,)

    @property
    def default_temperature(self) -> str:
        return "text"

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Templated:
        text = decode_text(member(sample, ("txt",)))
        tokens, place = self.template.filled(text)
        label = label_of(sample, self.context.info)
        return Templated(tokens, place, label, self._score(sample, label))

    def _score(self, sample: Sample, label: int) -> float:
        score = decode_json(sample["json"]).get("score", label) if "json" in sample else label
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise BadSample(f'"score" in json must be a number, found {str(score)[:40]!r}')
        return float(score)

    def batch(self, examples: list[Templated], generator: np.random.Generator | None) -> TaskBatch:
        return TaskBatch(
            task=self.config.name,
            inputs=Sequences(segments=(text_segment([e.tokens for e in examples], TEXT_INPUT),)),
            read_Q2=torch.tensor([[row, 1 + e.place] for row, e in enumerate(examples)]),
            candidates=self.candidates,
            labels_Q=torch.tensor([e.label for e in examples]),
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing,
        )
