"""Masked text: accuracy and loss over the whole vocabulary, beside what the word frequencies alone would give."""

from __future__ import annotations

from collections import Counter

import torch
from torch.nn.functional import cross_entropy

from evaluation.base import Evaluation, Metrics, encode_vocabulary


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """loss and unigram_entropy in nats a masked token; the entropy is of the masked tokens' own frequencies, so no model
    without context can be below it. majority is the accuracy of always answering the most frequent token."""
    objective, task = evaluation.objective, evaluation.source.task
    words_CD, _ = encode_vocabulary(objective, task.vocabulary, evaluation.device)
    loss, right = 0.0, 0
    counts: Counter[int] = Counter()
    for examples in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD, _ = objective.encode(batch.inputs, batch.read_Q2)
        logits_QC = objective.logits(features_QD, words_CD, batch.temperature)
        loss += float(cross_entropy(logits_QC, batch.labels_Q, reduction="sum"))
        right += int((logits_QC.argmax(dim=1) == batch.labels_Q).sum())
        counts.update(batch.labels_Q.tolist())
    total = counts.total()
    frequencies = torch.tensor(list(counts.values()), dtype=torch.float64) / total
    return {
        "accuracy": right / total,
        "majority": max(counts.values()) / total,
        "chance": 1 / words_CD.shape[0],
        "loss": loss / total,
        "unigram_entropy": float(-(frequencies * frequencies.log()).sum()),
        "tokens": total,
    }
