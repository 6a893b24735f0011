"""Zero-shot accuracy: the class whose name is nearest."""

from __future__ import annotations

import torch

from evaluation.base import Evaluation, Metrics, encode_rows


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """accuracy in [0, 1]; chance is 1 / classes."""
    objective, task = evaluation.objective, evaluation.source.task
    names_CD = encode_rows(evaluation, task.candidates)  # type: ignore[attr-defined]
    right, total = 0, 0
    for examples in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)
        best_Q = objective.logits(features_QD, names_CD, batch.temperature).argmax(dim=1)
        right += int((best_Q == batch.labels_Q).sum())
        total += len(examples)
    return {"accuracy": right / total, "chance": 1 / names_CD.shape[0], "samples": total}
