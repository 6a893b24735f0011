"""Image-text retrieval: recall at 1, 5, 10 both ways over the whole split. Legend: N images, M captions, D width."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from evaluation.base import Evaluation, Metrics, encode_rows

CUTOFFS = (1, 5, 10)


@torch.no_grad()
def evaluate(evaluation: Evaluation) -> Metrics:
    """A text query is right if its own image is among the first k, an image query if one of its captions is."""
    objective, task = evaluation.objective, evaluation.source.task
    images, captions, owners = [], [], []
    num_images = 0
    for examples in evaluation.batches():
        batch = task.batch(examples, None).to(evaluation.device)
        for example in examples:
            owners += [num_images] * len(example.references)
            captions += example.references
            num_images += 1
        images.append(objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name)[0])
    images_ND = torch.cat(images)
    texts_MD = encode_rows(evaluation, task.texts(captions))  # type: ignore[attr-defined]
    similarity_NM = normalize(images_ND, dim=-1) @ normalize(texts_MD, dim=-1).T
    return recalls(similarity_NM, torch.tensor(owners, device=images_ND.device))


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
