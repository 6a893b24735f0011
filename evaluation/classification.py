"""Zero-shot classification: the class whose name is nearest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data.tasks.classification import Classification
from evaluation.base import Evaluation, Result
from evaluation.encoding import encode_inputs, encode_rows
from evaluation.metrics.agreement import agreement
from evaluation.templates import encode_names

TOP = 5


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """accuracy (top 1) and top5_accuracy in [0, 1]; mean_class_accuracy: the mean over classes that the split has; majority: always
    the most frequent class of the split; chance: 1 / classes; and the metrics that dataset.json names."""
    objective, task = evaluation.objective, evaluation.source.task
    name, device = evaluation.source.name, evaluation.device
    if evaluation.templates:
        info = task.context.info
        names_CD = encode_names(objective, info.classes, evaluation.templates, task.vocabulary, name, device)
    else:
        names_CD = encode_rows(objective, task.candidates, name, device)  # type: ignore[attr-defined]
    num_classes = names_CD.shape[0]
    scale_C = torch.arange(num_classes, device=device, dtype=torch.float32)
    parts: list[np.ndarray] = []
    for examples, valid_B in evaluation.batches():
        logits, views = [], task.by_view(examples) if isinstance(task, Classification) else [examples]
        for view in views:
            batch = task.batch(view, None).to(device)
            features_QD = encode_inputs(objective, batch.inputs, batch.read_Q2, name)
            logits.append(objective.logits(features_QD, names_CD, batch.temperature))
        # Similarities are averaged, as in the paper; the public code averages probabilities (papers.md 1.9).
        logits_QC = logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)
        # The first of equal ones, as an argmax takes it: a model that tells nothing apart must not be right by the order of a top-k.
        best_QK = logits_QC.argsort(dim=1, descending=True, stable=True)[:, :TOP]
        right_QK, told_Q = best_QK == batch.labels_Q[:, None], best_QK[:, 0]
        # Where classes are steps of a scale, the step that the model expects.
        expected_Q = logits_QC.float().softmax(dim=1) @ scale_C
        targets_Q = torch.tensor([getattr(e, "score", e.label) for e in examples], device=device)
        columns_Q = (batch.labels_Q, told_Q, right_QK.any(dim=1), expected_Q, targets_Q)
        parts.append(torch.stack([column.double() for column in columns_Q], dim=1).cpu()[valid_B].numpy())
    labels_N, told_N, among_N, expected_N, targets_N = np.concatenate(evaluation.gathered(parts)).T
    first_N = (told_N == labels_N).astype(np.float64)
    by_class = class_accuracy(first_N, labels_N, task.context.info.classes)
    agreed = agreement(task.context.info.metrics, labels_N, told_N, targets_N, expected_N)
    metrics = {
        "accuracy": float(first_N.mean()),
        "top5_accuracy": float(among_N.mean()),
        "mean_class_accuracy": sum(by_class.values()) / len(by_class),
        "majority": majority(labels_N),
        "chance": 1 / num_classes,
        **agreed.figures,
        "samples": len(labels_N),
    }
    evidence_N2 = np.stack([first_N, np.ones_like(first_N)], axis=1)
    samples = {"top5_accuracy": among_N, "mean_class_accuracy": np.stack([labels_N, first_N], axis=1)}
    return Result(metrics, evidence_N2, {"class_accuracy": by_class}, agreed.intervals, samples)


def majority(labels_N: np.ndarray) -> float:
    """The accuracy of always telling the most frequent class."""
    return float(np.unique(labels_N, return_counts=True)[1].max() / len(labels_N))


def class_accuracy(right_N: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """By name, of the classes that the samples have."""
    return {
        name: float(right_N[labels_N == label].mean())
        for label, name in enumerate(classes)
        if (labels_N == label).any()
    }
