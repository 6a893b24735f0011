"""What evaluators share: the restored network, batches of examples, and passes without gradient."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.shards import DatasetError
from data.stream.evaluation import EvaluationBatch, evaluation_pass
from data.stream.faults import loss_of
from data.stream.share import Share
from data.stream.source import Source
from model.objective import Objective
from parallel.collectives import Axis, gathered_objects

Metrics = dict[str, float | int]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    metrics      by name
    evidence_N2  of every sample, in the order of the split, what it adds to the main figure's numerator and denominator
    details      figures of parts, as the accuracy of each class; for files, not for tables
    intervals    of other figures than the main one, whose own follows from the evidence
    """

    metrics: Metrics
    evidence_N2: np.ndarray
    details: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


class DamagedDataError(DatasetError):
    """A sample to be evaluated is unreadable."""

    of_one_rank = True


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluator's input: `limit` samples at most, all if None. `training` is the task's training split, for masked text and
    probes; beam and length_penalty are those of captions (the public code: 2 and 0).

    Several ranks, each with the whole network or a part of it, share the samples; `ranks` is their axis, and every rank gets the figures of
    all. templates: sentences for class names (evaluation/templates.py). alive is called after each batch.
    """

    objective: Objective
    source: Source
    training: Source | None = None
    device: str = "cpu"
    batch_size: int = 64
    limit: int | None = None
    beam: int = 2
    length_penalty: float = 0.0
    ranks: Axis = dataclasses.field(default_factory=lambda: Axis("data"))
    workers: int = 0
    templates: tuple[str, ...] = ()
    alive: Callable[[], object] = lambda: None

    @property
    def share(self) -> Share:
        """This rank's part of the samples."""
        return Share(self.ranks.rank, self.ranks.size)

    def batches(self) -> Iterator[tuple[list, Tensor]]:
        """(examples, valid_B) in shard order; all ranks get as many, and those that are not valid fill up the last ones. Raises
        DamagedDataError."""
        for batch in self.passed():
            yield batch.examples, torch.tensor(batch.valid)

    def passed(self) -> Iterator[EvaluationBatch]:
        """`batches` with the places of their examples.

        Raises DamagedDataError if a sample is unreadable, since a score over fewer is another score.
        """
        for batch in evaluation_pass(self.source, self.batch_size, self.limit, self.share, self.workers):
            if batch.faults:
                fault = batch.faults[0]
                raise DamagedDataError(
                    f"cannot evaluate on damaged data: task {fault.task}, {fault.place}: {fault.reason}"
                )
            yield batch
            self.alive()

    def training_examples(self) -> Iterator[Any]:
        """This rank's part of the training split, each once and unmodified; unreadable ones are left out, as in training."""
        assert self.training is not None
        for batch in self.training_passed(self.training):
            yield from itertools.compress(batch.examples, batch.valid)

    def training_passed(self, source: Source, places: np.ndarray | None = None) -> Iterator[EvaluationBatch]:
        """As `passed`, of a training split or of the samples at these places of it; unreadable ones are left out, so a batch may be
        smaller than others, or empty."""
        for batch in evaluation_pass(source, self.batch_size, None, self.share, self.workers, places):
            yield batch
            self.alive()

    def gathered(self, batches: list[T]) -> list[T]:
        """Collective. What each rank has of each of its batches, in the order of the batches of all ranks."""
        parts = self.of_all_ranks(batches)
        return [part for batch in zip(*parts, strict=True) for part in batch]

    def of_all_ranks(self, value: T) -> list[T]:
        """Collective. Every rank's value."""
        return gathered_objects(value, self.ranks)


def check_complete(source: Source) -> None:
    """Raises DatasetError if samples of the split are known to be missing: a score over what is left is another score."""
    loss = loss_of(source)
    if loss.samples or (loss.faults and not loss.is_exact):
        raise DatasetError(
            f"cannot evaluate on a part of the data: task {source.name}: {loss.text}; "
            f"`python -m data.inspect lint {source.task.config.path}` lists what is wrong"
        )
