"""Masked text: accuracy and loss over the whole vocabulary, beside what the word frequencies alone would give."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch.nn.functional import cross_entropy

from evaluation.base import Evaluation, Metrics, encode_vocabulary


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """loss, unigram_loss and unigram_entropy in nats per masked token.

    unigram_loss      the loss of the training text's word frequencies (one added to each count): a model without context
    unigram_entropy   the entropy of the training text's word frequencies
    majority          the accuracy of always answering the most frequent masked token
    """
    objective, task = evaluation.objective, evaluation.source.task
    words_CD, _ = encode_vocabulary(evaluation)
    parts: list[tuple[float, int, Counter[int]]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)
        logits_QC = objective.logits(features_QD, words_CD, batch.temperature)
        counted_Q = valid_B.to(evaluation.device)[batch.read_Q2[:, 0]]
        loss_Q = cross_entropy(logits_QC, batch.labels_Q, reduction="none") * counted_Q
        right_Q = (logits_QC.argmax(dim=1) == batch.labels_Q) & counted_Q
        parts.append((float(loss_Q.sum()), int(right_Q.sum()), Counter(batch.labels_Q[counted_Q].tolist())))
    losses, rights, labels = zip(*evaluation.gathered(parts), strict=True)
    loss, right = sum(losses), sum(rights)
    counts: Counter[int] = sum(labels, Counter())
    total = counts.total()
    own: Counter[int] = Counter()
    for example in evaluation.training_examples():
        own.update(example.original_tokens)
    # In the order of tokens, so that sums are those of a single rank to the last bit.
    seen = Counter(dict(sorted(sum(evaluation.of_all_ranks(own), Counter()).items())))
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
