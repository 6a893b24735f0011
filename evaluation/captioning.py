"""Captions by beam search, scored with CIDEr-D, BLEU, ROUGE-L and METEOR, and by exact agreement with a reference."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from data.tasks.written import WritingTask
from data.text.words import words_of
from evaluation.base import Evaluation, Result
from evaluation.encoding import checked, encode_vocabulary
from evaluation.metrics.caption_scores import bleu_counts, bleu_of, rouge_l_by_image
from evaluation.metrics.cider import cider_d, cider_d_by_image
from evaluation.metrics.meteor import MeteorError, meteor
from model.generate import Words, beam_search
from model.objective import Objective

T = TypeVar("T")


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """cider in [0, 10]; shuffled_cider is the same captions against the references of other images: what a model that
    ignores the image can reach; bleu1 to bleu4 and rouge_l in [0, 1], over the whole split; exact: share of captions with the words of
    one of the references; meteor in [0, 1], where it is asked for, of the first rank.

    References are scored as they were written, as the field does. `exact` alone takes them as the tokenizer gives them back, since no
    caption can be nearer.
    """
    copied = evaluation.source.task.vocabulary.copied
    captions, references = generate(evaluation)
    shifted = references[1:] + references[:1]
    exact = [_key(c) in (_key(copied(r)) for r in refs) for c, refs in zip(captions, references, strict=True)]
    words, reference_words = [words_of(c) for c in captions], [[words_of(r) for r in refs] for refs in references]
    by_image = cider_d_by_image(captions, references)
    counts_N10, rouge = bleu_counts(words, reference_words), rouge_l_by_image(words, reference_words)
    metrics = {
        "cider": sum(by_image) / len(by_image),
        "shuffled_cider": cider_d(captions, shifted) if len(references) > 1 else math.nan,  # one image has no other
        **{f"bleu{n}": score for n, score in enumerate(bleu_of(counts_N10.sum(axis=0)).tolist(), start=1)},
        "rouge_l": sum(rouge) / len(rouge),
        "exact": sum(exact) / len(exact),
        "samples": len(captions),
    }
    if evaluation.meteor and evaluation.ranks.rank == 0:
        try:
            metrics["meteor"] = meteor(words, reference_words)
        except MeteorError as error:  # all other figures are there
            print(f"warning: {evaluation.source.name}: {error}", file=sys.stderr)
    samples = {"bleu": counts_N10, "rouge_l": np.array(rouge), "exact": np.array(exact, dtype=np.float64)}
    return Result(metrics, np.stack([by_image, np.ones(len(by_image))], axis=1), samples=samples)


def _key(caption: str) -> list[str] | str:
    """What two equal captions have in common; of punctuation alone there are no words."""
    return words_of(caption) or caption.strip()


def generate(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(captions, references) of every sample."""
    pairs = written(evaluation, evaluation.source.task.config.max_text, lambda example: example.references)
    return [caption for caption, _ in pairs], [references for _, references in pairs]


def written(evaluation: Evaluation, max_tokens: int, kept: Callable[[Any], T]) -> list[tuple[str, T]]:
    """Collective. What the network writes after every sample, and what is kept of the sample."""
    objective, task = evaluation.objective, evaluation.source.task
    vocabulary, words = task.vocabulary, words_of_captions(objective, task, evaluation.device)  # type: ignore[arg-type]
    parts: list[list[tuple[str, T]]] = []
    for examples, valid_B in evaluation.batches():
        prefix = task.prefix(examples).to(evaluation.device)  # type: ignore[attr-defined]
        found = beam_search(objective, prefix, words, evaluation.beam, max_tokens, evaluation.length_penalty)
        checked(found.log_probs_BKT[:, 0], evaluation.source.name)
        captions = [vocabulary.decode(row).strip() for row in found.best(vocabulary.end)]
        pairs = zip(captions, map(kept, examples), strict=True)
        parts.append(list(itertools.compress(pairs, valid_B.tolist())))
    return [pair for part in evaluation.gathered(parts) for pair in part]


def words_of_captions(objective: Objective, task: WritingTask, device: str) -> Words:
    """What the captions or answers of a task are made of."""
    vocabulary = task.vocabulary
    return Words(
        *encode_vocabulary(objective, task, device),
        temperature=task.temperature,
        end=vocabulary.end,
        spe=vocabulary.spe,
        attributes=task.written_attributes,
        task=task.config.name,
    )
