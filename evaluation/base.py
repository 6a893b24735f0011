"""What evaluators share: the restored network, batches of examples, and passes without gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from data.batch import Sequences
from data.stream import Source, evaluation_pass
from data.targets import all_words
from model.objective import Objective

Metrics = dict[str, float | int]
CHUNK = 1024
"""Candidates encoded in one pass."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluator's input: `limit` samples at most, all if None. `training` is the task's training split; beam and
    length_penalty are those of captions (the public code: 2 and 0)."""

    objective: Objective
    source: Source
    training: Source
    device: str = "cpu"
    batch_size: int = 64
    limit: int | None = None
    beam: int = 2
    length_penalty: float = 0.0

    def batches(self) -> Iterator[list]:
        """Examples in shard order; raises RuntimeError if a sample is unreadable, since a score over fewer is another score."""
        for batch in evaluation_pass(self.source, self.batch_size, self.limit):
            if batch.faults:
                raise RuntimeError(f"cannot evaluate on damaged data: {batch.faults[0]}")
            yield batch.examples

    def training_batches(self) -> Iterator[list]:
        """Examples of the training split, unmodified; unreadable ones are left out, as in training."""
        for batch in evaluation_pass(self.training, self.batch_size):
            yield batch.examples


@torch.no_grad()
def encode_rows(evaluation: Evaluation, sequences: Sequences) -> Tensor:
    """Features [rows, W] read out at <SPE>, in chunks."""
    parts = []
    for start in range(0, sequences.num_rows, CHUNK):
        chunk = sequences.rows(slice(start, start + CHUNK)).to(evaluation.device)
        parts.append(evaluation.objective.encode_candidates(chunk, task=evaluation.source.name)[0])
    return torch.cat(parts)


def encode_vocabulary(evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    """(words_CD features of every word and end-of-text, tokens_C the token of each)."""
    vocabulary = evaluation.source.task.vocabulary
    tokens = [vocabulary.candidate_token(candidate) for candidate in range(vocabulary.num_candidates)]
    words = all_words(vocabulary, evaluation.source.task.context.word_end)
    return encode_rows(evaluation, words), torch.tensor(tokens, device=evaluation.device)
