"""Masked text: accuracy and loss over the whole vocabulary, beside what the word frequencies alone would give.

Words that no training text has are scored, too, by the bytes that spell them: these compete with the whole vocabulary and all other
bytes. Known words compete with known words alone, so their scores do not depend on what else is in the texts.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from evaluation.base import Evaluation, Result
from evaluation.encoding import encode_inputs, encode_spelling, encode_vocabulary


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """loss, unigram_loss and unigram_entropy in nats per masked token; perplexity is exp(loss).

    unigram_loss      the loss of the training text's word frequencies (one added to each count): a model without context. End-of-text,
                      which is never masked, is none of the words
    unigram_entropy   the entropy of the training text's word frequencies
    majority          the accuracy of always answering the most frequent masked token
    spelled_tokens    of the masked tokens, those that are bytes of words which no training text has
    """
    objective, task = evaluation.objective, evaluation.source.task
    vocabulary = task.vocabulary
    words_CD, _ = encode_vocabulary(objective, task, evaluation.device)  # type: ignore[arg-type]
    known = words_CD.shape[0]
    bytes_CD: torch.Tensor | None = None
    parts: list[tuple[np.ndarray, Counter[int]]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        features_QD = encode_inputs(objective, batch.inputs, batch.read_Q2, evaluation.source.name)
        logits_QC = objective.logits(features_QD, words_CD, batch.temperature)
        counted_Q = valid_B.to(evaluation.device)[batch.read_Q2[:, 0]]
        spelled_Q = batch.labels_Q >= known
        loss_Q = cross_entropy(logits_QC, batch.labels_Q.where(~spelled_Q, 0), reduction="none")
        best_Q = logits_QC.argmax(dim=1)
        if spelled_Q.any():
            bytes_CD = encode_spelling(objective, task, evaluation.device) if bytes_CD is None else bytes_CD  # type: ignore[arg-type]
            spelling_QC = objective.logits(features_QD[spelled_Q], bytes_CD, batch.temperature)
            logits_QC = torch.cat([logits_QC[spelled_Q], spelling_QC], dim=1)
            loss_Q[spelled_Q] = cross_entropy(logits_QC, batch.labels_Q[spelled_Q], reduction="none")
            best_Q[spelled_Q] = logits_QC.argmax(dim=1)
        loss_Q, right_Q = loss_Q * counted_Q, (best_Q == batch.labels_Q) & counted_Q
        # Right and masked tokens of each text, and the sum of their losses.
        row_Q = batch.read_Q2[:, 0]
        sums_B3 = torch.stack(
            [torch.bincount(row_Q, weights.double(), len(examples)) for weights in (right_Q, counted_Q, loss_Q)], dim=1
        )
        parts.append((sums_B3.cpu().numpy()[valid_B.numpy()], Counter(batch.labels_Q[counted_Q].tolist())))
    sums, labels = zip(*evaluation.gathered(parts), strict=True)
    sums_N3 = np.concatenate(sums)
    right, _, loss = sums_N3.sum(axis=0).tolist()
    counts: Counter[int] = sum(labels, Counter())
    total = counts.total()
    seen = _training_counts(evaluation)
    frequencies = torch.tensor(list(seen.values()), dtype=torch.float64) / seen.total()

    def surprise(token: int) -> float:
        candidates = vocabulary.num_words + (vocabulary.num_spelling if token >= known else 0)
        return -math.log((seen[token] + 1) / (seen.total() + candidates))

    metrics = {
        "accuracy": float(right / total),
        "majority": max(counts.values()) / total,
        "chance": 1 / known,
        "loss": loss / total,
        "perplexity": float(np.exp(np.float64(loss / total))),
        "unigram_loss": sum(n * surprise(token) for token, n in counts.items()) / total,
        "unigram_entropy": float(-(frequencies * frequencies.log()).sum()),
        "tokens": total,
        "spelled_tokens": sum(n for token, n in counts.items() if token >= known),
    }
    return Result(metrics, sums_N3[:, :2], samples={"loss": sums_N3[:, [2, 1]]})


def _training_counts(evaluation: Evaluation) -> Counter[int]:
    """Collective. How often each candidate stands in the texts that the run trains on, end-of-text left out; read where nobody has yet."""
    assert evaluation.training is not None
    name, vocabulary = evaluation.training.name, evaluation.training.task.vocabulary
    if name not in evaluation.word_counts:
        own: Counter[int] = Counter()
        for example in evaluation.training_examples():
            own.update(map(vocabulary.candidate, example.original_tokens[:-1]))
        # In the order of tokens, so that sums are those of a single rank to the last bit.
        seen = sorted(sum(evaluation.of_all_ranks(own), Counter()).items())
        evaluation.word_counts[name] = Counter(dict(seen))
    return evaluation.word_counts[name]
