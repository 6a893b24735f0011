"""Frozen features of labelled samples. Legend: N samples, B those of a batch, D width of the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from data.stream.evaluation import EvaluationBatch
from data.stream.part import labels_of
from evaluation.base import Evaluation
from evaluation.encoding import encode_inputs


class Features(NamedTuple):
    """features_ND in fp32; places_N: of the samples in their split."""

    features_ND: np.ndarray
    labels_N: np.ndarray
    places_N: np.ndarray


@torch.no_grad()
def features_of(evaluation: Evaluation, batches: Iterator[EvaluationBatch]) -> Features:
    """Collective. Those of the samples of all ranks, in their order.

    Of each sample what stands at its read-out after the last LayerNorm, before the projection. The projection was trained to keep what
    tells the trained candidates apart and drops the rest, so features before it carry over better to other labels; V-MoE's few-shot
    evaluation reads the last layer before the head as well (papers.md 3.7).
    """
    objective, task = evaluation.objective, evaluation.source.task
    tower = objective.text_tower if objective.text_tower and not task.has_pictures else objective.tower
    width = tower.config.width
    parts: list[Features] = []
    for passed in batches:
        if not passed.examples:  # of damaged training samples alone
            parts.append(Features(np.empty((0, width), np.float32), np.empty(0, np.int64), np.empty(0, np.int64)))
            continue
        batch, valid_B = task.batch(passed.examples, None).to(evaluation.device), np.array(passed.valid)
        features_BD = encode_inputs(objective, batch.inputs, batch.read_Q2, evaluation.source.name, projected=False)
        columns_B = (features_BD.cpu().numpy(), batch.labels_Q.cpu().numpy(), np.array(passed.places))
        parts.append(Features(*(column[valid_B] for column in columns_B)))
    return Features(*map(np.concatenate, zip(*evaluation.gathered(parts), strict=True)))


def training_labels(evaluation: Evaluation) -> np.ndarray:
    """Collective. labels_N of all samples of the training split, -1 where it cannot be read. Every rank reads them, by what its machine has
    kept, and those of the first count, so that all choose the same samples whatever one of them failed to read. Raises DatasetError where
    too many cannot be read: the part would be drawn from other samples than those of the split."""
    source = evaluation.training
    assert source is not None
    own_N = labels_of(source.task.context.info, source.shards)
    labels_N = evaluation.of_all_ranks(own_N if evaluation.share.index == 0 else np.empty(0, np.int64))[0]
    for _ in evaluation.training_passed(source, np.flatnonzero(labels_N < 0), len(labels_N)):
        pass  # read once more, which says why they cannot be
    return labels_N
