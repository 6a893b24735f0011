"""Zero-shot accuracy: the class whose name is nearest."""

from __future__ import annotations

import torch

from evaluation.base import Evaluation, Metrics, encode_rows


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """accuracy in [0, 1]; chance is 1 / classes."""
    objective, task = evaluation.objective, evaluation.source.task
    names_CD = encode_rows(evaluation, task.candidates)  # type: ignore[attr-defined]
    counts: list[tuple[int, int]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)
        best_Q = objective.logits(features_QD, names_CD, batch.temperature).argmax(dim=1)
        right_Q = (best_Q == batch.labels_Q).cpu() & valid_B
        counts.append((int(right_Q.sum()), int(valid_B.sum())))
    right, total = map(sum, zip(*evaluation.gathered(counts), strict=True))
    return {"accuracy": right / total, "chance": 1 / names_CD.shape[0], "samples": total}
