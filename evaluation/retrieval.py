"""Image-text retrieval: recall at 1, 5, 10 and median rank, both ways over the whole split. Legend: N images, M captions, D width."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluation.base import Evaluation, Metrics, Result
from evaluation.encoding import CHUNK, encode_inputs, encode_rows
from evaluation.intervals import CUTOFFS

ROWS = 256
"""Queries that are compared with all answers at a time."""


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Result:
    """A text query is right if its own image is among the first k, an image query if one of its captions is."""
    objective, task = evaluation.objective, evaluation.source.task
    parts: list[tuple[Tensor, list[list[str]]]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        images_BD = encode_inputs(objective, batch.inputs, batch.read_Q2, evaluation.source.name)
        references = [example.references for example in itertools.compress(examples, valid_B.tolist())]
        parts.append((images_BD.cpu()[valid_B], references))
    parts = evaluation.gathered(parts)
    images_ND = torch.cat([images for images, _ in parts]).to(evaluation.device)
    references = [texts for _, part in parts for texts in part]
    captions = list(itertools.chain.from_iterable(references))
    owners = [image for image, texts in enumerate(references) for _ in texts]
    texts_MD = _encoded(evaluation, captions)
    metrics, first_N, rank_M = recalls(images_ND, texts_MD, torch.tensor(owners, device=images_ND.device))
    hits_N = (first_N == 0).cpu().numpy()
    # Captions stand with their image, and are drawn with it: those of one image are found or missed together.
    own_N = np.array([len(texts) for texts in references])
    own_NK = np.full((len(references), own_N.max()), np.nan)
    own_NK[np.arange(own_N.max()) < own_N[:, None]] = rank_M.cpu().numpy() + 1
    samples = {"image_to_text": first_N.cpu().numpy()[:, None] + 1.0, "text_to_image": own_NK}
    return Result(metrics, np.stack([hits_N, np.ones_like(hits_N)], axis=1).astype(np.float64), samples=samples)


def _encoded(evaluation: Evaluation, captions: list[str]) -> Tensor:
    """texts_MD; each rank encodes every n-th chunk of the captions."""
    task = evaluation.source.task
    chunks = [captions[start : start + CHUNK] for start in range(0, len(captions), CHUNK)]
    own = {}
    for number in range(evaluation.share.index, len(chunks), evaluation.share.count):
        texts = task.texts(chunks[number])  # type: ignore[attr-defined]
        own[number] = encode_rows(evaluation.objective, texts, evaluation.source.name, evaluation.device).cpu()
    of_all = {number: rows for part in evaluation.of_all_ranks(own) for number, rows in part.items()}
    return torch.cat([of_all[number] for number in range(len(chunks))]).to(evaluation.device)


def recalls(images_ND: Tensor, texts_MD: Tensor, owner_M: Tensor) -> tuple[Metrics, Tensor, Tensor]:
    """(R@k and median ranks both ways, first_N: the rank of each image's first own text, rank_M: that of each text's image, both from 0).
    owner_M is the image of each text.

    Texts that equal a right one count as wrong, so the figures are lower bounds where texts repeat. Chance is for R@1.
    """
    num_images, num_texts = len(images_ND), len(texts_MD)
    image_N = torch.arange(num_images, device=owner_M.device)
    images_ND, texts_MD = normalize(images_ND.double(), dim=-1), normalize(texts_MD.double(), dim=-1)
    first_N = _first_own(images_ND, texts_MD, image_N, owner_M)
    rank_M = _first_own(texts_MD, images_ND, owner_M, image_N)
    metrics: Metrics = {}
    for name, ranks in (("image_to_text", first_N), ("text_to_image", rank_M)):
        for k in CUTOFFS:
            metrics[f"{name}_r{k}"] = float((ranks < k).double().mean())
        metrics[f"{name}_median_rank"] = float(ranks.double().quantile(0.5)) + 1
    own_N = torch.bincount(owner_M, minlength=num_images)
    metrics["image_to_text_chance"] = float((own_N / num_texts).mean())
    metrics["text_to_image_chance"] = 1 / num_images
    metrics["images"], metrics["texts"] = num_images, num_texts
    return metrics, first_N, rank_M


def _first_own(queries_QD: Tensor, answers_AD: Tensor, owner_Q: Tensor, owner_A: Tensor) -> Tensor:
    """How many answers come before the first one with the query's owner [Q], by similarity and of equal ones in their order: counting the
    strictly better alone would give a model that tells nothing apart a recall of 1. A few queries at a time: memory is that of
    their rows alone."""
    place_A = torch.arange(len(answers_AD), device=answers_AD.device)
    ranks = []
    for start in range(0, len(queries_QD), ROWS):
        rows = slice(start, start + ROWS)
        # Rounded, so that equal vectors are equally near, whatever order the sums of products had.
        similarity_QA = (queries_QD[rows] @ answers_AD.T).float()
        own_QA = owner_Q[rows, None] == owner_A[None, :]
        best_Q1 = similarity_QA.masked_fill(~own_QA, -torch.inf).max(dim=1, keepdim=True).values
        equal_QA = similarity_QA == best_Q1
        first_Q1 = place_A.where(equal_QA & own_QA, len(place_A)).min(dim=1, keepdim=True).values
        before_QA = (similarity_QA > best_Q1) | (equal_QA & (place_A < first_Q1))
        ranks.append(before_QA.sum(dim=1))
    return torch.cat(ranks)
