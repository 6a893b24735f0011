"""Samples to a complete data set folder, with a report of what was left out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from data.shards import (
    DatasetError,
    DatasetInfo,
    SplitInfo,
    clear_dataset,
    is_complete,
    write_info,
    write_shards,
)
from data.tokenizer import END_OF_TEXT, Tokenizer

SHOWN_FAILURES = 10


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample to be: its name in the source, members by extension, and the texts in it."""

    name: str
    members: dict[str, Any]
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Failure:
    """Something of the source that makes no sample."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set to be. Each split's function starts its items anew, failures among them."""

    kind: Any
    classes: tuple[str, ...]
    splits: dict[str, Callable[[], Iterator[Item | Failure]]]


@dataclasses.dataclass
class _Tally:
    """What has passed of one split."""

    samples: int = 0
    failures: list[Failure] = dataclasses.field(default_factory=list)


def build(out: Path, source: Source, samples_per_shard: int = 1000) -> None:
    """Write the folder; dataset.json comes last. Raises DatasetError if a split gets no sample."""
    clear_dataset(out)
    tokenizer = Tokenizer.load()
    token_ids = {END_OF_TEXT}.union(*(tokenizer.encode(name) for name in source.classes))
    splits: dict[str, SplitInfo] = {}
    for split, items in source.splits.items():
        tally = _Tally()
        progress = tqdm(items(), desc=f"{out.name} {split}", unit=" samples", disable=None)
        shards = write_shards(out, split, _samples(progress, tally, tokenizer, token_ids), samples_per_shard)
        _report(out, split, tally, shards)
        if not tally.samples:
            raise DatasetError(f"{out}: split {split} has no sample; {len(tally.failures)} failures, see above")
        splits[split] = SplitInfo(samples=tally.samples, shards=len(shards))
    info = DatasetInfo(kind=source.kind, classes=source.classes, token_ids=tuple(sorted(token_ids)), splits=splits)
    write_info(out, info)


def _samples(
    items: Iterable[Item | Failure], tally: _Tally, tokenizer: Tokenizer, token_ids: set[int]
) -> Iterator[dict[str, Any]]:
    """The items that are samples, with keys; what else is seen goes to `tally` and `token_ids`."""
    for item in items:
        if isinstance(item, Failure):
            tally.failures.append(item)
            continue
        for text in item.texts:
            token_ids.update(tokenizer.encode(text))
        yield {"__key__": _key(tally.samples, item.name), **item.members}
        tally.samples += 1


def _report(out: Path, split: str, tally: _Tally, shards: list[Path]) -> None:
    size = sum(path.stat().st_size for path in shards)
    failures = tally.failures
    counts = f"{tally.samples} samples, {len(shards)} shards, {size} bytes, {len(failures)} failures"
    print(f"{out}: {split}: {counts}")
    for failure in failures[:SHOWN_FAILURES]:
        print(f"  {failure.name}: {failure.reason}")
    if len(failures) > SHOWN_FAILURES:
        print(f"  and {len(failures) - SHOWN_FAILURES} more")


def is_to_build(out: Path, overwrite: bool) -> bool:
    """Whether there is something to do; says so if not."""
    if is_complete(out) and not overwrite:
        print(f"{out}: complete, left alone (--overwrite makes it again)")
        return False
    return True


def _key(index: int, name: str) -> str:
    """Unique by the number, traceable by the name; without dots, at which webdataset would cut it."""
    return f"{index:06d}_{re.sub(r'[^A-Za-z0-9]+', '_', str(PurePosixPath(name).with_suffix('')))[-60:]}"
