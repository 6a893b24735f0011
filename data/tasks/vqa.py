"""Visual question answering: picture and question are the input, the candidates are answers (papers.md 1.5: answer strings are ranked)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from data.attributes import CAPTION_VISUAL, QUESTION_TEXT
from data.batch import Sequences, TaskBatch
from data.config import TaskConfig
from data.decode.text import decode_json
from data.shards.errors import BadSample
from data.tasks.base import Sample, Visual, label_of
from data.tasks.members import found
from data.tasks.segments import text_segment
from data.tasks.template import TemplatedTask

UNKNOWN = -1
"""Label of a question to be evaluated whose most frequent answer is no candidate; training has none of these."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """tokens of the question in its template; place: index of <spe> among them; answers: what people said, one each; answer_type:
    yes/no, number, other, or empty."""

    visual: Visual
    tokens: list[int]
    place: int
    label: int
    answers: tuple[str, ...]
    answer_type: str


class VisualQuestionAnswering(TemplatedTask):
    reads = ("image_question", "video_question")

    @classmethod
    def check(cls, config: TaskConfig) -> None:
        super().check(config)
        if config.mix.is_on:
            raise ValueError(f"task {config.name}: mix blends pictures, but not the questions about them")

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Asked:
        question, answers, answer_type = question_of(sample)
        label = UNKNOWN if generator is None and "cls" not in sample else label_of(sample, self.context.info)
        tokens, place = self.template.filled(question)
        return Asked(self.visual(sample, generator), tokens, place, label, answers, answer_type)

    def batch(self, examples: list[Asked], generator: np.random.Generator | None) -> TaskBatch:
        visual = self.visual_segment([e.visual for e in examples], CAPTION_VISUAL)
        first = 1 + visual.valid_BL.shape[1]
        return TaskBatch(
            task=self.config.name,
            inputs=Sequences(segments=(visual, text_segment([e.tokens for e in examples], QUESTION_TEXT))),
            read_Q2=torch.tensor([[row, first + e.place] for row, e in enumerate(examples)]),
            candidates=self.candidates,
            labels_Q=torch.tensor([e.label for e in examples]),
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing,
        )


def question_of(sample: Sample) -> tuple[str, tuple[str, ...], str]:
    """-> (question, answers of people, their type or empty). Raises BadSample."""
    about = decode_json(sample["json"]) if "json" in sample else {}
    question, answers, answer_type = about.get("question"), about.get("answers"), about.get("answer_type")
    if not isinstance(question, str):
        raise BadSample(f'no question: needs json with a text "question"; {found(sample)}')
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadSample('no answer: needs json with a list "answers" of texts, one of each person')
    return question, tuple(answers), answer_type if isinstance(answer_type, str) else ""
