"""Masked text: accuracy and loss over the whole vocabulary, beside what the word frequencies alone would give."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch.nn.functional import cross_entropy

from evaluation.base import Evaluation, Metrics, encode_vocabulary


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """loss, unigram_loss and unigram_entropy in nats a masked token.

    unigram_loss      the loss of the training text's word frequencies (one added to each count): a model without context
    unigram_entropy   the entropy of the training text's word frequencies
    majority          the accuracy of always answering the most frequent masked token
    """
    objective, task = evaluation.objective, evaluation.source.task
    words_CD, _ = encode_vocabulary(evaluation)
    loss, right = 0.0, 0
    counts: Counter[int] = Counter()
    for examples in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)
        logits_QC = objective.logits(features_QD, words_CD, batch.temperature)
        loss += float(cross_entropy(logits_QC, batch.labels_Q, reduction="sum"))
        right += int((logits_QC.argmax(dim=1) == batch.labels_Q).sum())
        counts.update(batch.labels_Q.tolist())
    total = counts.total()
    seen: Counter[int] = Counter()
    for examples in evaluation.training_batches():
        for example in examples:
            seen.update(example.original_tokens)
    frequencies = torch.tensor(list(seen.values()), dtype=torch.float64) / seen.total()
    smoothed = seen.total() + words_CD.shape[0]
    return {
        "accuracy": right / total,
        "majority": max(counts.values()) / total,
        "chance": 1 / words_CD.shape[0],
        "loss": loss / total,
        "unigram_loss": -sum(n * math.log((seen[token] + 1) / smoothed) for token, n in counts.items()) / total,
        "unigram_entropy": float(-(frequencies * frequencies.log()).sum()),
        "tokens": total,
    }
