"""Candidate sets: class names, and the vocabulary whole or sampled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.attributes import NAME_TARGET, WORD_TARGET, Attributes
from data.batch import Sequences
from data.tasks.segments import text_segment
from data.text.vocabulary import Vocabulary


def class_names(
    names: Sequence[str], vocabulary: Vocabulary, max_text: int, attributes: Attributes = NAME_TARGET
) -> Sequences:
    """One candidate a class: its name and end-of-text, no template (papers.md 1.5)."""
    rows = [vocabulary.encode(name, max_text) for name in names]
    return Sequences(segments=(text_segment(rows, attributes),))


@dataclasses.dataclass(frozen=True)
class WordTargets:
    """candidates: C words, each a sequence of one token; labels_Q: the right one of each read-out."""

    candidates: Sequences
    labels_Q: Tensor
    log_weights_C: Tensor | None


def all_words(vocabulary: Vocabulary, word_end: bool = False) -> Sequences:
    """Every word of the vocabulary and end-of-text, in candidate order."""
    return _words([vocabulary.candidate_token(c) for c in range(vocabulary.num_candidates)], vocabulary, word_end)


def word_targets(
    token_ids: Sequence[int],
    vocabulary: Vocabulary,
    sample: int,
    generator: np.random.Generator,
    word_end: bool = False,
) -> WordTargets:
    """Candidates for read-outs that mean `token_ids`.

    With 0 < sample < vocabulary: the distinct words of the batch, and words drawn at random up to `sample` in all. A drawn
    word stands for 1 / rate words of the vocabulary, which makes the sum over candidates an unbiased estimate of the
    sum over all.
    """
    total = vocabulary.num_candidates
    right = [vocabulary.candidate(token) for token in token_ids]
    own = sorted(set(right))
    if not sample or sample >= total or len(own) >= sample:
        if sample and len(own) >= sample:
            raise ValueError(
                f"data.vocabulary_sample={sample} leaves no room beside the {len(own)} words of this batch: raise it or lower batch_size"
            )
        return WordTargets(all_words(vocabulary, word_end), torch.tensor(right, dtype=torch.long), None)
    others = np.setdiff1d(np.arange(total), own)
    drawn = generator.choice(others, size=sample - len(own), replace=False)
    chosen = [*own, *(int(c) for c in drawn)]
    index = {candidate: i for i, candidate in enumerate(own)}
    log_weights_C = torch.zeros(len(chosen))
    log_weights_C[len(own) :] = math.log(len(others) / len(drawn))
    return WordTargets(
        _words([vocabulary.candidate_token(c) for c in chosen], vocabulary, word_end),
        torch.tensor([index[c] for c in right], dtype=torch.long),
        log_weights_C,
    )


def _words(token_ids: Sequence[int], vocabulary: Vocabulary, word_end: bool) -> Sequences:
    rows = [[token, vocabulary.end] if word_end else [token] for token in token_ids]
    return Sequences(segments=(text_segment(rows, WORD_TARGET),))
