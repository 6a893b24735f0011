"""The table of evaluators, by kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from data.config import TaskConfig
from evaluation import captioning, classification, masked_text, retrieval, vqa, written
from evaluation.base import Evaluation, Result


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """figure: the metric that sums up the others; floor: the metric that says what a model gets that has learned nothing.
    needs_training: the figures are compared with the task's training split."""

    evaluate: Callable[[Evaluation], Result]
    figure: str
    floor: str
    needs_training: bool = False


EVALUATORS: dict[str, Evaluator] = {
    "classification": Evaluator(classification.evaluate, "accuracy", "chance"),
    "text_classification": Evaluator(classification.evaluate, "accuracy", "chance"),
    "masked_text": Evaluator(masked_text.evaluate, "accuracy", "majority", needs_training=True),
    "captioning": Evaluator(captioning.evaluate, "cider", "shuffled_cider"),
    "retrieval": Evaluator(retrieval.evaluate, "image_to_text_r1", "image_to_text_chance"),
    "vqa": Evaluator(vqa.evaluate, "vqa_accuracy", "majority"),
}
WRITTEN: dict[str, Evaluator] = {
    "classification": Evaluator(written.evaluate, "accuracy", "chance"),
    "text_classification": Evaluator(written.evaluate, "accuracy", "chance"),
    "vqa": Evaluator(written.evaluate_vqa, "vqa_accuracy", "majority"),
}
"""The same kinds with `answer: generate`."""


def evaluator_of(task: TaskConfig) -> Evaluator:
    return EVALUATORS[task.kind] if task.answer == "rank" else WRITTEN[task.kind]
