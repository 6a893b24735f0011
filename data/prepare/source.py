"""What a layout makes of its inputs: samples to be, divided into shards before any of them is read.

Which samples a shard holds follows from the lists alone, so shards can be made in any order by any number of processes,
and a shard made before a kill is the one that would be made again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.prepare.containers import Limits
from data.shards import BadSample, DatasetError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One sample: its name in the source, members by extension, and the texts in it."""

    name: str
    members: dict[str, Any]
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Something of the source that makes no sample. Failures are counted by reason, so a reason names no sample."""

    name: str
    reason: str

    @classmethod
    def of(cls, name: str, error: BadSample) -> Failure:
        """Numbers and addresses in the message differ from sample to sample, and become N."""
        return cls(name, re.sub(r"\b\d+\b", "N", re.sub(r" at 0x[0-9a-f]+", "", error.reason)))


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard. `items` starts its items; it is pickled to a worker.

    first  number of its first item in the split, for keys
    size   items expected, for the progress bar
    """

    items: Callable[[], Iterator[Item | Failure]]
    first: int
    size: int


@dataclasses.dataclass(frozen=True)
class SplitJobs:
    """jobs starts the shards' jobs, in order; failures are those already known from the lists."""

    jobs: Callable[[], Iterator[ShardJob]]
    size: int
    failures: tuple[Failure, ...] = ()


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A data set to be."""

    kind: Any
    classes: tuple[str, ...]
    splits: dict[str, SplitJobs]
    synonyms: tuple[tuple[str, ...], ...] = ()
    metrics: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind.endswith(("_class", "_question")) and not self.classes:
            raise DatasetError("no class was found in the inputs; --help says what is expected")
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DatasetError(f"two classes have the name {twice!r}")
        for name in itertools.chain(self.classes, *self.synonyms):
            if not is_text(name):
                raise DatasetError(f"class {name!r} cannot be written as UTF-8: give it another name with --name-map")


@dataclasses.dataclass(frozen=True)
class Context:
    """What every layout gets besides its own arguments.

    scratch  folder for unpacked copies of compressed tars, removed at the end
    shuffle  samples in an order that is a function of seed and names; otherwise in that of the lists
    """

    limits: Limits
    scratch: Path
    shuffle: bool = False
    seed: int = 0
    val_fraction: float = 0.0
    shard_size: int = 1000


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a sample of this name is val. It depends on nothing else, so lists may grow and keep their splits."""
    return place_of("val", name) < fraction


def take_val(
    splits: dict[str, list[T]], failures: dict[str, list[Failure]], name: Callable[[T], str], context: Context
) -> None:
    """Move the held-out part of train to val, where --val-fraction asks for it. Raises DatasetError."""
    if not context.val_fraction:
        return
    if "val" in splits or "train" not in splits:
        raise DatasetError("--val-fraction takes val out of train: give train and no val of its own")
    train = splits["train"]
    held = [is_held_out(name(entry), context.val_fraction) for entry in train]
    splits["val"] = [entry for entry, is_val in zip(train, held, strict=True) if is_val]
    splits["train"] = [entry for entry, is_val in zip(train, held, strict=True) if not is_val]
    failures.setdefault("val", [])
    if train and len(set(held)) == 1:
        empty, other = ("train", "smaller") if held[0] else ("val", "larger")
        raise DatasetError(
            f"--val-fraction {context.val_fraction:g} of {len(train)} samples leaves {empty} empty: give a {other} one, or "
            "--val-fraction 0 for train alone"
        )


def split_of(
    entries: Sequence[T],
    make: Callable[[T], Item | Failure],
    name: Callable[[T], str],
    failures: Sequence[Failure],
    context: Context,
) -> SplitJobs:
    """Entries in their final order, `make` turning each into a sample in a worker (both must pickle)."""
    if context.shuffle:
        order = sorted(entries, key=lambda entry: (place_of(f"order {context.seed}", name(entry)), name(entry)))
        entries = order

    def jobs() -> Iterator[ShardJob]:
        for first in range(0, len(entries), context.shard_size):
            part = entries[first : first + context.shard_size]
            yield ShardJob(_Items(make, part), first, len(part))

    return SplitJobs(jobs, len(entries), tuple(failures))


@dataclasses.dataclass(frozen=True)
class _Items:
    make: Callable[[Any], Item | Failure]
    entries: Sequence[Any]

    def __call__(self) -> Iterator[Item | Failure]:
        return map(self.make, self.entries)


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8; JSON can hold halves of characters, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def key_of(index: int, name: str) -> str:
    """Unique by the number, traceable by the name; without dots, at which webdataset would cut it."""
    stem = re.sub(r"\.[^./]*$", "", name)
    return f"{index:06d}_{re.sub(r'[^A-Za-z0-9]+', '_', stem)[-60:]}"


def place_of(purpose: str, name: str) -> float:
    """A number in [0, 1) that looks random and depends on both texts alone."""
    digest = hashlib.blake2b(f"{purpose}\0{name}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / (1 << 64)
