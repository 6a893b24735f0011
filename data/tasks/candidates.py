"""Candidate sets: class names, and the vocabulary whole or sampled."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.attributes import NAME_TARGET, WORD_TARGET, Attributes
from data.batch import Sequences
from data.shards import DatasetError
from data.tasks.segments import equal_text_segment, text_segment
from data.text.names import alike
from data.text.vocabulary import Vocabulary


def class_names(
    names: Sequence[str], vocabulary: Vocabulary, max_text: int, attributes: Attributes = NAME_TARGET
) -> Sequences:
    """One candidate per class: its name and end-of-text, no template (papers.md 1.5)."""
    rows = [vocabulary.encode(name, max_text) for name in names]
    return Sequences(segments=(text_segment(rows, attributes),)).located()


def check_distinct(names: Sequence[str], vocabulary: Vocabulary, max_text: int, task: str) -> None:
    """Raises DatasetError if two classes are one to the model: both would be right, and one is scored as wrong."""
    for one, other in alike(names, lambda name: vocabulary.encode(name, max_text)):
        raise DatasetError(
            f"task {task}: classes {one!r} and {other!r} of its data set are one to the model, which sees no letter case and at most "
            f"max_text={max_text} tokens: raise max_text, or rename one in dataset.json"
        )


@dataclasses.dataclass(frozen=True)
class WordTargets:
    """candidates: C words, each a sequence of one token; labels_Q: the right one of each read-out."""

    candidates: Sequences
    labels_Q: Tensor
    log_weights_C: Tensor | None


class WordCandidates:
    """The vocabulary as candidates. The set of all words is built once and kept, and so are the bytes that spell others.

    word_end: a word is encoded with end-of-text after it.
    """

    def __init__(self, vocabulary: Vocabulary, word_end: bool = False) -> None:
        self.vocabulary, self.word_end = vocabulary, word_end

    @functools.cached_property
    def all(self) -> Sequences:
        """Every word of the vocabulary and end-of-text, in candidate order."""
        return self._of(np.arange(self.vocabulary.num_candidates))

    @functools.cached_property
    def spelling(self) -> Sequences:
        """The bytes that are no words, in candidate order."""
        first = self.vocabulary.num_candidates
        return self._of(np.arange(first, first + self.vocabulary.num_spelling))

    @functools.cached_property
    def with_spelling(self) -> Sequences:
        return self._of(np.arange(self.vocabulary.num_candidates + self.vocabulary.num_spelling))

    def targets(self, token_ids: Sequence[int], sample: int, generator: np.random.Generator) -> WordTargets:
        """Candidates for read-outs that mean `token_ids`: every word, and every byte too if one of them is a byte that is no word.

        With 0 < sample < vocabulary: the distinct words of the batch, and words drawn at random up to `sample` in all. A drawn
        word stands for 1 / rate words of the vocabulary, which makes the sum over candidates an unbiased estimate of the
        sum over all.
        """
        total = self.vocabulary.num_candidates
        right = [self.vocabulary.candidate(token) for token in token_ids]
        own = sorted(set(right))
        if not sample or sample >= total or len(own) >= sample:
            if sample and len(own) >= sample:
                raise ValueError(
                    f"data.vocabulary_sample={sample} leaves no room beside the {len(own)} words of this batch: raise it or lower "
                    "batch_size"
                )
            candidates = self.all if max(right) < total else self.with_spelling
            return WordTargets(candidates, torch.tensor(right, dtype=torch.long), None)
        others = np.setdiff1d(np.arange(total), own)
        drawn = generator.choice(others, size=sample - len(own), replace=False)
        index = {candidate: i for i, candidate in enumerate(own)}
        log_weights_C = torch.zeros(sample)
        log_weights_C[len(own) :] = math.log(len(others) / len(drawn))
        return WordTargets(
            self._of(np.concatenate([own, drawn]).astype(np.int64)),
            torch.tensor([index[c] for c in right], dtype=torch.long),
            log_weights_C,
        )

    def _of(self, candidates_C: np.ndarray) -> Sequences:
        end = self.vocabulary.end
        tokens_C = np.array([self.vocabulary.candidate_token(c) for c in candidates_C.tolist()], dtype=np.int64)
        columns = [tokens_C, np.full_like(tokens_C, end)] if self.word_end else [tokens_C]
        return Sequences(segments=(equal_text_segment(np.stack(columns, axis=1), WORD_TARGET),)).located()
