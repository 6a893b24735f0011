"""Inputs to features; candidates to features, in chunks: class names, captions, the words of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batch import Sequences
from data.tasks.base import WordTask
from model.objective import NotFiniteError, Objective

CHUNK = 1024
"""Rows encoded in one pass."""


def checked(values: Tensor, task: str) -> Tensor:
    """The same values. Raises NotFiniteError: no answer is better than the right one where nothing can be compared, so a diverged network
    would seem the best of all."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError(
            f"task {task}: the network answers with numbers that are not finite, as its weights have diverged: take another checkpoint"
        )
    return values


@torch.no_grad()
def encode_inputs(
    objective: Objective, inputs: Sequences, read_Q2: Tensor, task: str, projected: bool = True
) -> Tensor:
    """Features [Q, W] of these places, or before the projection [Q, D]. Raises NotFiniteError."""
    return checked(objective.encode(inputs, read_Q2, task=task, projected=projected)[0], task)


@torch.no_grad()
def encode_rows(objective: Objective, sequences: Sequences, task: str, device: str) -> Tensor:
    """Features [rows, W] read out at <SPE>. Raises NotFiniteError."""
    parts = []
    for start in range(0, sequences.num_rows, CHUNK):
        chunk = sequences.rows(slice(start, start + CHUNK)).to(device)
        parts.append(objective.encode_candidates(chunk, task=task)[0])
    return checked(torch.cat(parts), task)


def encode_vocabulary(objective: Objective, task: WordTask, device: str) -> tuple[Tensor, Tensor]:
    """(words_CD features of every word and end-of-text, tokens_C the token of each)."""
    vocabulary = task.vocabulary
    tokens = [vocabulary.candidate_token(candidate) for candidate in range(vocabulary.num_candidates)]
    features_CD = encode_rows(objective, task.words.all, task.config.name, device)
    return features_CD, torch.tensor(tokens, device=device)


def encode_spelling(objective: Objective, task: WordTask, device: str) -> Tensor:
    """Features [bytes, W] of the candidates after those of encode_vocabulary. By themselves, so that those stay as they are."""
    return encode_rows(objective, task.words.spelling, task.config.name, device)
