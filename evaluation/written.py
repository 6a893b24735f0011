"""Answers that the network writes by beam search, where ranking would choose among the class names.

A text is an answer if it is the name of a class as the tokenizer gives it back: the tokenizer sees no letter case and one space for many.
Any other text is a wrong answer; nothing is mended or looked up by likeness.
"""

from __future__ import annotations

import numpy as np
import torch

from evaluation.base import Evaluation, Metrics, Result
from evaluation.captioning import written
from evaluation.classification import class_accuracy
from evaluation.metrics.agreement import agreement
from evaluation.vqa import result_of

NO_CLASS = -1


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """accuracy in [0, 1]; named: share of texts that are the name of any class; mean_class_accuracy; chance: 1 / classes; and the metrics
    that dataset.json names, of scores the step that was written."""
    task = evaluation.source.task
    info = task.context.info
    found = written(evaluation, task.longest_name, lambda e: (e.label, getattr(e, "score", e.label)))  # type: ignore[attr-defined]
    numbers = {task.vocabulary.copied(name).strip(): number for number, name in enumerate(info.classes)}
    told_N = np.array([numbers.get(text, NO_CLASS) for text, _ in found])
    labels_N, targets_N = np.array([kept for _, kept in found]).T
    right_N = (told_N == labels_N).astype(np.float64)
    by_class = class_accuracy(right_N, labels_N, info.classes)
    agreed = agreement(info.metrics, labels_N, told_N, targets_N, told_N)
    metrics: Metrics = {
        "accuracy": float(right_N.mean()),
        "named": float((told_N != NO_CLASS).mean()),
        "mean_class_accuracy": sum(by_class.values()) / len(by_class),
        "chance": 1 / len(info.classes),
        **agreed.figures,
        "samples": len(found),
    }
    evidence_N2 = np.stack([right_N, np.ones_like(right_N)], axis=1)
    return Result(metrics, evidence_N2, {"class_accuracy": by_class}, agreed.intervals)


@torch.no_grad()
def evaluate_vqa(evaluation: Evaluation) -> Result:
    """As where answers are ranked; a text need not be one of the candidates."""
    task = evaluation.source.task
    found = written(evaluation, task.longest_name, lambda e: (e.answers, e.answer_type))  # type: ignore[attr-defined]
    return result_of([(text, *kept) for text, kept in found], task.context.info.classes)
