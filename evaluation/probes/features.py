"""Frozen features of labelled samples. Legend: N samples, B those of a batch, D width of the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from data.batch import TaskBatch
from data.stream.evaluation import EvaluationBatch
from data.stream.source import Source
from data.tasks.base import Sample, Task, label_of
from evaluation.base import Evaluation


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
        features_BD, _ = objective.encode(batch.inputs, batch.read_Q2, task=evaluation.source.name, projected=False)
        columns_B = (features_BD.cpu().numpy(), batch.labels_Q.cpu().numpy(), np.array(passed.places))
        parts.append(Features(*(column[valid_B] for column in columns_B)))
    return Features(*map(np.concatenate, zip(*evaluation.gathered(parts), strict=True)))


def labels_of(evaluation: Evaluation, source: Source) -> np.ndarray:
    """Collective. labels_N of all samples of a training split, -1 where it cannot be read. No picture is decoded."""
    labels = dataclasses.replace(source, task=_Labels(source.task.context))
    parts = [
        [(place, label) for place, label, valid in zip(b.places, b.examples, b.valid, strict=True) if valid]
        for b in evaluation.training_passed(labels)
    ]
    labels_N = np.full(source.order.total, -1)
    for part in evaluation.gathered(parts):
        for place, label in part:
            labels_N[place] = label
    return labels_N


class _Labels(Task):
    """Reads the class of a sample and nothing else."""

    reads = ("image_class", "video_class", "text_class")
    answers = "classes"
    default_temperature = ""

    def example(self, sample: Sample, generator: np.random.Generator | None) -> int:
        return label_of(sample, self.context.info)

    def batch(self, examples: list[int], generator: np.random.Generator | None) -> TaskBatch:
        raise NotImplementedError
