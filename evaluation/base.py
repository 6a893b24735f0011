"""What evaluators share: the restored network, batches of examples, and passes without gradient."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data.config import DataConfig
from data.shards import DatasetError
from data.stream.evaluation import EvaluationBatch, evaluation_pass, places_of
from data.stream.faults import Fault, StoreGoneError, loss_of, losses_of
from data.stream.share import Share
from data.stream.source import Source
from data.tasks.base import number_of
from data.transport import shown
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
    samples      what each sample adds to other figures, whose intervals follow from it (evaluation/intervals.py)
    """

    metrics: Metrics
    evidence_N2: np.ndarray
    details: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    samples: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class DamagedDataError(DatasetError):
    """A sample to be evaluated is unreadable."""

    of_one_rank = True


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluator's input: `limit` samples at most, all if None. `training` is the task's training split, for masked text and
    probes; beam and length_penalty are those of captions (the public code: 2 and 0), and so is meteor, a Java program.

    Several ranks, each with the whole network or a part of it, share the samples; `ranks` is their axis, and every rank gets the figures of
    all. templates: sentences for class names (evaluation/templates.py). alive is called after each batch. max_bad_fraction: of the training
    split, data.max_bad_fraction. word_counts: by task, what masked text has counted in training splits; whoever evaluates often hands in
    the same, and they are read once. asked: of this rank's samples that have passed what is asked for, by place (`_asked_of`).
    """

    objective: Objective
    source: Source
    training: Source | None = None
    device: str = "cpu"
    batch_size: int = 64
    limit: int | None = None
    beam: int = 2
    length_penalty: float = 0.0
    meteor: bool = False
    ranks: Axis = dataclasses.field(default_factory=lambda: Axis("data"))
    workers: int = 0
    templates: tuple[str, ...] = ()
    alive: Callable[[], object] = lambda: None
    max_bad_fraction: float = DataConfig.max_bad_fraction
    word_counts: dict[str, Counter[int]] = dataclasses.field(default_factory=dict)
    asked: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> Share:
        """This rank's part of the samples."""
        return Share(self.ranks.rank, self.ranks.size)

    def batches(self) -> Iterator[tuple[list, Tensor]]:
        """(examples, valid_B) in shard order; all ranks get as many, and those that are not valid fill up the last ones. Raises as `passed`
        does."""
        for batch in self.passed():
            yield batch.examples, torch.tensor(batch.valid)

    def passed(self) -> Iterator[EvaluationBatch]:
        """`batches` with the places of their examples.

        Raises DamagedDataError if a sample is unreadable, since a score over fewer is another score, and StoreGoneError.
        """
        for batch in evaluation_pass(self.source, self.batch_size, self.limit, self.share, self.workers):
            _check_store(self.source, batch.faults)
            if batch.faults:
                fault = batch.faults[0]
                raise DamagedDataError(
                    f"cannot evaluate on damaged data: task {fault.task}, {fault.place}: {fault.reason}; {remedy(self.source)}"
                )
            self.asked.update(_asked_of(batch))
            yield batch
            self.alive()

    def training_examples(self) -> Iterator[Any]:
        """Collective. This rank's part of what the run trains on, each sample once and unmodified; see `training_passed`."""
        assert self.training is not None
        for batch in self.training_passed(self.training, places_of(self.training)):
            yield from itertools.compress(batch.examples, batch.valid)

    def training_passed(
        self, source: Source, places: np.ndarray, total: int | None = None
    ) -> Iterator[EvaluationBatch]:
        """Collective. As `passed`, of the samples at these places of a training split. Unreadable ones are left out, so a batch may be
        smaller than others, or empty.

        total: samples that the places stand for, by default as many as there are. Raises DatasetError where a larger share of them than
        max_bad_fraction is lost, as training does, and StoreGoneError at the first one that is.
        """
        loss = losses_of([source], self.max_bad_fraction)[source.name]
        own = 0
        some: tuple[Fault, ...] = ()
        for batch in evaluation_pass(source, self.batch_size, None, self.share, self.workers, places):
            _check_store(source, batch.faults)
            own, some = own + len(batch.faults), some or batch.faults[:1]
            yield batch
            self.alive()
        counts, faults = zip(*self.of_all_ranks((own, some)), strict=True)
        bad, total = sum(counts), len(places) if total is None else total
        if bad and loss.share + (1 - loss.share) * bad / total > self.max_bad_fraction:
            fault = next(itertools.chain.from_iterable(faults))
            also = " beside what was missing when shards were listed" if loss.samples else ""
            raise DatasetError(
                f"task {fault.task}: {bad:,} of {total:,} training samples cannot be read{also}, the first {fault.place}: {fault.reason}; "
                f"more than data.max_bad_fraction={self.max_bad_fraction:g} allows. {remedy(source)}"
            )

    def gathered(self, batches: list[T]) -> list[T]:
        """Collective. What each rank has of each of its batches, in the order of the batches of all ranks."""
        parts = self.of_all_ranks(batches)
        return [part for batch in zip(*parts, strict=True) for part in batch]

    def of_all_ranks(self, value: T) -> list[T]:
        """Collective. Every rank's value."""
        return gathered_objects(value, self.ranks)


def remedy(source: Source) -> str:
    """The end of messages about its data."""
    return f"`python -m data.inspect lint {shown(source.task.config.path)}` lists what is wrong"


def _check_store(source: Source, faults: tuple[Fault, ...]) -> None:
    """Raises StoreGoneError where one of the faults may pass: the data may be well, and the same command do later."""
    fault = next((fault for fault in faults if fault.may_pass), None)
    if fault is not None:
        raise StoreGoneError(
            f"cannot evaluate while a store does not answer: task {fault.task}, {fault.place} of {shown(source.task.config.path)}: "
            f"{fault.reason}; start the same command again when it does"
        )


ASKED_FOR = ("label", "score", "references", "answers", "originals")
"""Where examples have it: classes, scores, captions, answers of people, masked words (data/tasks)."""


def _asked_of(batch: EvaluationBatch) -> Iterator[tuple[int, int]]:
    """(place, a number that follows from it and from what is asked for) of the valid examples."""
    for example, valid, place in zip(batch.examples, batch.valid, batch.places, strict=True):
        if valid:
            asked = [getattr(example, name, None) for name in ASKED_FOR]
            yield place, number_of(repr((place, asked)).encode("utf-8", "surrogatepass"))


def check_complete(source: Source) -> None:
    """Raises DatasetError if samples of the split are known to be missing: a score over what is left is another score."""
    loss = loss_of(source)
    if loss.samples or (loss.faults and not loss.is_exact):
        raise DatasetError(f"cannot evaluate on a part of the data: task {source.name}: {loss.text}; {remedy(source)}")
