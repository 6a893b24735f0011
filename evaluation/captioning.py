"""Captions by greedy generation, scored with CIDEr-D and by exact agreement with a reference."""

from __future__ import annotations

import torch

from data.attributes import CAPTION_TEXT
from evaluation.base import Evaluation, Metrics, encode_vocabulary
from evaluation.cider import cider_d, words_of
from model.generate import greedy


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """cider in [0, 10]; shuffled_cider is the same captions against the references of other images: what a model that
    ignores the image can reach; exact: share of captions equal to one of the references."""
    captions, references = generate(evaluation)
    shifted = references[1:] + references[:1]
    exact = [words_of(c) in [words_of(r) for r in refs] for c, refs in zip(captions, references, strict=True)]
    return {
        "cider": cider_d(captions, references),
        "shuffled_cider": cider_d(captions, shifted),
        "exact": sum(exact) / len(exact),
        "samples": len(captions),
    }


def generate(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(captions, references) of every sample."""
    objective, task = evaluation.objective, evaluation.source.task
    vocabulary = task.vocabulary
    words_CD, tokens_C = encode_vocabulary(evaluation)
    captions, references = [], []
    for examples in evaluation.batches():
        rows = greedy(
            objective,
            task.prefix(examples).to(evaluation.device),  # type: ignore[attr-defined]
            words_CD,
            tokens_C,
            task.temperature,
            vocabulary.end,
            vocabulary.spe,
            CAPTION_TEXT,
            task.config.max_text,
            evaluation.source.name,
        )
        captions += [vocabulary.decode(row).strip() for row in rows]
        references += [example.references for example in examples]
    return captions, references
