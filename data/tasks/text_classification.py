"""Classification of text: a template with <spe> in it, read there, compared with label words (GLUE, papers.md 1.5)."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import torch

from data.attributes import TEXT_INPUT
from data.batch import Sequences, TaskBatch
from data.decode.text import decode_json, decode_text
from data.shards.errors import BadSample
from data.tasks.base import Sample, label_of
from data.tasks.members import member
from data.tasks.segments import text_segment
from data.tasks.template import TemplatedTask


@dataclasses.dataclass(frozen=True)
class Templated:
    """tokens of the filled template; place: index of <spe> among them; score: what people said, where classes are steps of a scale, and
    else the class number."""

    tokens: list[int]
    place: int
    label: int
    score: float


class TextClassification(TemplatedTask):
    reads = ("text_class",)
    has_pictures = False

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Templated:
        text = decode_text(member(sample, ("txt",)))
        tokens, place = self.template.filled(text)
        label = label_of(sample, self.context.info)
        return Templated(tokens, place, label, score_of(sample, label))

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


def score_of(sample: Sample, label: int) -> float:
    """What people gave the text, or its label. Raises BadSample."""
    score = decode_json(sample["json"]).get("score", label) if "json" in sample else label
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if not is_number or not abs(score) <= sys.float_info.max:  # an int may be larger than any float
        raise BadSample(f'"score" in json must be a number, found {str(score)[:40]!r}')
    return float(score)
