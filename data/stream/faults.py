"""What of the data could not be used: single samples, and what is missing from the shards as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.shards import BadSample, BadShard, DatasetError
from data.shards.files import INFO_FILE
from data.stream.source import Source
from data.transport import shown


class TooManyFaultsError(DatasetError):
    """More of a task's samples are bad than the run allows."""

    of_one_rank = True

    def __init__(self, message: str) -> None:
        # From a worker process it comes with a traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class StoreGoneError(TooManyFaultsError):
    """The store of a task's shards has stopped to answer: the same command goes on when it does again."""


def too_many(message: str, last: Fault) -> TooManyFaultsError:
    return StoreGoneError(message) if last.may_pass else TooManyFaultsError(message)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A sample that could not be used, or with sample=None all or the rest of a shard.

    shard: its name without credentials; sample: index in the shard; offset: in bytes, where it is known; may_pass: its store did not
    answer.
    """

    task: str
    shard: str
    sample: int | None
    offset: int | None
    reason: str
    may_pass: bool = False

    @property
    def place(self) -> str:
        """For messages."""
        return self.shard if self.sample is None else f"{self.shard} sample {self.sample}"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What of a task's split is missing before a sample is read: its shards are cut off, no tars, or gone.

    samples, bytes  that are lost, `is_exact`ly by the count in dataset.json, or estimated by the size of sound shards, one of each damaged
                    shard at least
    remaining       samples that are there
    faults          one of each shard, and one of dataset.json where its count alone tells
    part            samples that `shots` or `fraction` choose of those that are there; 0: all
    """

    samples: int
    bytes: int
    remaining: int
    faults: tuple[Fault, ...]
    is_exact: bool
    part: int = 0

    @property
    def epoch(self) -> int:
        """Samples of an epoch."""
        return self.part or self.remaining

    @property
    def share(self) -> float:
        """Of all samples that there should be."""
        return self.samples / (self.samples + self.remaining)

    @property
    def text(self) -> str:
        """How much it is, for messages."""
        about = "" if self.is_exact else "about "
        shards = [fault.shard for fault in self.faults]
        others = f" (and {len(shards) - 1:,} other shards)" if len(shards) > 1 else ""
        lost = f"{about}{self.samples:,} of {self.samples + self.remaining:,} samples ({self.bytes / 1e6:,.3g} MB) are lost: "
        return f"{lost if self.samples else ''}{shards[0]}: {self.faults[0].reason}{others}"


def loss_of(source: Source) -> Loss:
    """Of the shards as they are listed; those that are damaged later are met while samples are read."""
    task, listed = source.task, source.shards.listed
    faults = [Fault(source.name, source.shards.name(s), None, None, reason) for s, reason in listed.faults.items()]
    split = None if task.config.shards else task.context.info.splits.get(task.config.split)
    remaining, samples = int(source.order.sizes.sum()), 0
    is_exact = split is not None and (
        split.samples > remaining or (split.samples, split.shards) == (remaining, len(listed.names))
    )
    if split is not None and is_exact:
        samples = split.samples - remaining
        if samples and (not faults or split.shards > len(listed.names)):  # first: shards that are gone
            reason = f"counts {split.samples:,} samples of split {task.config.split}, its shards have {remaining:,}"
            faults.insert(0, Fault(source.name, INFO_FILE, None, None, reason))
    elif faults:
        damaged = np.isin(np.arange(len(listed.samples)), list(listed.faults))
        whole = listed.samples[damaged].max() if damaged.all() else np.median(listed.samples[~damaged])
        samples = int(np.maximum(whole - listed.samples[damaged], 1).sum())
    bytes_per_sample = listed.bytes[listed.samples > 0].sum() / remaining
    part = source.order.total if source.order.total < remaining else 0
    return Loss(samples, int(samples * bytes_per_sample), remaining, tuple(faults), is_exact, part)


def losses_of(sources: Sequence[Source], max_fraction: float) -> dict[str, Loss]:
    """By task. Raises DatasetError where a larger share is lost; all ranks find the same."""
    losses = {source.name: loss_of(source) for source in sources}
    for source in sources:
        loss = losses[source.name]
        if loss.share > max_fraction:
            raise DatasetError(
                f"task {source.name}: {loss.text}; more than data.max_bad_fraction={max_fraction:g} allows. "
                f"`python -m data.inspect lint {shown(source.task.config.path)}` lists what is wrong"
            )
    return losses


def fault_of(source: Source, shard: int, index: int, error: BadSample) -> Fault:
    """What goes to the ledger."""
    if isinstance(error, BadShard):
        return Fault(source.name, source.shards.name(shard), None, error.offset, error.reason, error.may_pass)
    offset = error.offset
    if offset is None:  # the sample was read, and its content is bad
        offset = int(source.shards.ranges(shard)[index, 0])
    return Fault(source.name, source.shards.name(shard), index, offset, error.reason)
