"""The table of evaluators, by kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from data.config import TaskConfig
from data.stream.source import Source
from evaluation import captioning, classification, masked_text, retrieval, vqa, written
from evaluation.base import Evaluation, Result


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """figure: the metric that sums up the others; floor: the metric that says what a model gets that has learned nothing.
    others: all other metrics but those that dataset.json names. needs_training: the figures are compared with the task's training split."""

    evaluate: Callable[[Evaluation], Result]
    figure: str
    floor: str
    others: tuple[str, ...]
    needs_training: bool = False


RANKED = ("top5_accuracy", "mean_class_accuracy", "chance", "samples")
TEXTS = ("loss", "perplexity", "unigram_loss", "unigram_entropy", "chance", "tokens", "spelled_tokens")
CAPTIONS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "exact", "samples")
RECALLS = (
    *("image_to_text_r5", "image_to_text_r10", "image_to_text_median_rank", "text_to_image_r1", "text_to_image_r5"),
    *("text_to_image_r10", "text_to_image_median_rank", "text_to_image_chance", "images", "texts"),
)
NAMED = ("named", "mean_class_accuracy", "chance", "samples")
ANSWERS = ("answerable", "samples")
"""Other metrics of evaluators."""

EVALUATORS: dict[str, Evaluator] = {
    "classification": Evaluator(classification.evaluate, "accuracy", "majority", RANKED),
    "text_classification": Evaluator(classification.evaluate, "accuracy", "majority", RANKED),
    "masked_text": Evaluator(masked_text.evaluate, "accuracy", "majority", TEXTS, needs_training=True),
    "captioning": Evaluator(captioning.evaluate, "cider", "shuffled_cider", CAPTIONS),
    "retrieval": Evaluator(retrieval.evaluate, "image_to_text_r1", "image_to_text_chance", RECALLS),
    "vqa": Evaluator(vqa.evaluate, "vqa_accuracy", "majority", ANSWERS),
}
WRITTEN: dict[str, Evaluator] = {
    "classification": Evaluator(written.evaluate, "accuracy", "majority", NAMED),
    "text_classification": Evaluator(written.evaluate, "accuracy", "majority", NAMED),
    "vqa": Evaluator(written.evaluate_vqa, "vqa_accuracy", "majority", ANSWERS),
}
"""The same kinds with `answer: generate`."""


def evaluator_of(task: TaskConfig) -> Evaluator:
    return EVALUATORS[task.kind] if task.answer == "rank" else WRITTEN[task.kind]


def figures_of(source: Source) -> tuple[str, ...]:
    """Names of all metrics of an evaluation of this task."""
    evaluator, named = evaluator_of(source.task.config), source.task.context.info.metrics
    return (evaluator.figure, evaluator.floor, *evaluator.others, *named)
