"""Image-text retrieval: recall at 1, 5, 10 both ways over the whole split. Legend: N images, M captions, D width."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluation.base import CHUNK, Evaluation, Metrics, encode_rows

CUTOFFS = (1, 5, 10)


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """A text query is right if its own image is among the first k, an image query if one of its captions is."""
    objective, task = evaluation.objective, evaluation.source.task
    parts: list[tuple[Tensor, list[list[str]]]] = []
    for examples, valid_B in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        images_BD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)
        references = [example.references for example in itertools.compress(examples, valid_B.tolist())]
        parts.append((images_BD.cpu()[valid_B], references))
    parts = evaluation.gathered(parts)
    images_ND = torch.cat([images for images, _ in parts]).to(evaluation.device)
    references = [texts for _, part in parts for texts in part]
    captions = list(itertools.chain.from_iterable(references))
    owners = [image for image, texts in enumerate(references) for _ in texts]
    texts_MD = _encoded(evaluation, captions)
    similarity_NM = normalize(images_ND, dim=-1) @ normalize(texts_MD, dim=-1).T
    return recalls(similarity_NM, torch.tensor(owners, device=images_ND.device))


def _encoded(evaluation: Evaluation, captions: list[str]) -> Tensor:
    """texts_MD; each rank encodes every n-th chunk of the captions."""
    task = evaluation.source.task
    chunks = [captions[start : start + CHUNK] for start in range(0, len(captions), CHUNK)]
    own = {
        number: encode_rows(evaluation, task.texts(chunks[number])).cpu()  # type: ignore[attr-defined]
        for number in range(evaluation.share.index, len(chunks), evaluation.share.count)
    }
    of_all = {number: rows for part in evaluation.of_all_ranks(own) for number, rows in part.items()}
    return torch.cat([of_all[number] for number in range(len(chunks))]).to(evaluation.device)


def recalls(similarity_NM: Tensor, owner_M: Tensor) -> Metrics:
    """R@k both ways; owner_M is the image of each caption. Captions with the same text as a right one count as wrong,
    so the figures are lower bounds where texts repeat. Chance is for R@1."""
    num_images, num_texts = similarity_NM.shape
    metrics: Metrics = {}
    own_NM = owner_M[None, :] == torch.arange(num_images, device=owner_M.device)[:, None]
    ranked_NM = own_NM.gather(1, similarity_NM.argsort(dim=1, descending=True, stable=True))
    first_text_N = ranked_NM.int().argmax(dim=1)
    # A stable order both ways: counting the strictly better alone would give a model that tells nothing apart a recall of 1.
    order_NM = similarity_NM.argsort(dim=0, descending=True, stable=True)
    rank_M = (order_NM == owner_M[None, :]).int().argmax(dim=0)
    for k in CUTOFFS:
        metrics[f"image_to_text_r{k}"] = float((first_text_N < k).float().mean())
        metrics[f"text_to_image_r{k}"] = float((rank_M < k).float().mean())
    metrics["image_to_text_chance"] = float((own_NM.sum(dim=1) / num_texts).mean())
    metrics["text_to_image_chance"] = 1 / num_images
    metrics["images"], metrics["texts"] = num_images, num_texts
    return metrics
