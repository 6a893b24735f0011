"""Answers that the network writes by beam search, where ranking would choose among the class names.

A text is an answer if it is the name of a class as training writes it and the tokenizer gives it back: no letter case, one space for many,
and what max_text tokens hold of it. Any other text is a wrong answer; nothing is mended or looked up by likeness.
"""

from __future__ import annotations

import numpy as np
import torch

from data.tasks.base import Task
from evaluation.base import Evaluation, Metrics, Result
from evaluation.captioning import written
from evaluation.classification import class_accuracy, majority
from evaluation.metrics.agreement import agreement
from evaluation.vqa import result_of

NO_CLASS = -1


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """accuracy in [0, 1]; named: share of texts that are the name of any class; mean_class_accuracy; majority: always the most frequent
    class of the split; chance: 1 / classes; and the metrics that dataset.json names, of scores the step that was written."""
    task = evaluation.source.task
    info = task.context.info
    found = written(evaluation, task.longest_name, lambda e: (e.label, getattr(e, "score", e.label)))  # type: ignore[attr-defined]
    numbers = _numbers(task)
    told_N = np.array([numbers.get(text, NO_CLASS) for text, _ in found])
    labels_N, targets_N = np.array([kept for _, kept in found]).T
    right_N = (told_N == labels_N).astype(np.float64)
    by_class = class_accuracy(right_N, labels_N, info.classes)
    agreed = agreement(info.metrics, labels_N, told_N, targets_N, told_N)
    metrics: Metrics = {
        "accuracy": float(right_N.mean()),
        "named": float((told_N != NO_CLASS).mean()),
        "mean_class_accuracy": sum(by_class.values()) / len(by_class),
        "majority": majority(labels_N),
        "chance": 1 / len(info.classes),
        **agreed.figures,
        "samples": len(found),
    }
    evidence_N2 = np.stack([right_N, np.ones_like(right_N)], axis=1)
    samples = {
        "named": (told_N != NO_CLASS).astype(np.float64),
        "mean_class_accuracy": np.stack([labels_N, right_N], axis=1),
    }
    return Result(metrics, evidence_N2, {"class_accuracy": by_class}, agreed.intervals, samples)


@torch.no_grad()
def evaluate_vqa(evaluation: Evaluation) -> Result:
    """As where answers are ranked; a text that is none of the candidates is scored as it stands."""
    task = evaluation.source.task
    classes, numbers = task.context.info.classes, _numbers(task)
    found = written(evaluation, task.longest_name, lambda e: (e.answers, e.answer_type))  # type: ignore[attr-defined]
    return result_of([(classes[numbers[text]] if text in numbers else text, *kept) for text, kept in found], classes)


def _numbers(task: Task) -> dict[str, int]:
    """Of the classes, by the text that stands for each."""
    rows = task.names  # type: ignore[attr-defined]
    return {task.vocabulary.decode(row).strip(): number for number, row in enumerate(rows)}
