"""One sample at a time out of the shards of a split."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data.shards.access import CachedAccess, LocalAccess
from data.shards.errors import BadSample, BadShard, DatasetError
from data.shards.files import check_split
from data.shards.links import LinkTargets
from data.shards.lists import (
    MAX_LIST_BYTES,
    ShardList,
    list_of_folder,
    list_of_locations,
    list_of_prefix,
)
from data.shards.members import MAX_SAMPLE_BYTES, Damage, read_sample
from data.shards.ranges import load_ranges
from data.transport import (
    Cache,
    FetchError,
    check_url,
    expand,
    is_remote,
    join,
    local_path,
    may_pass,
    read_small,
    shown,
)

RANGES_BYTES = 64 << 20
"""Byte ranges that a process keeps in memory, 16 bytes per sample."""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSet:
    """Shards for reading samples one by one; holds no open file, so it may be copied to other processes.

    Opening reads a list of the shards alone. A shard is looked at when a sample of it is read for the first time.

    listed      names, samples and bytes of every shard
    base        folder or URL prefix of the names; None: `locations` has each shard's place
    """

    listed: ShardList
    base: str | None
    locations: tuple[str, ...] = ()
    cache: Cache | None = None
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    _ranges: RangeCache = dataclasses.field(default_factory=lambda: RangeCache(RANGES_BYTES), repr=False)
    _links: LinkTargets = dataclasses.field(default_factory=LinkTargets, repr=False)

    @classmethod
    def open(
        cls, directory: Path | str, split: str, cache: Cache | None = None, max_sample_bytes: int = MAX_SAMPLE_BYTES
    ) -> ShardSet:
        """All `<split>-*.tar` of a folder or URL prefix, by name. URLs need a cache. Raises DatasetError."""
        check_split(split)
        base = str(directory)
        if is_remote(base):
            _check_url(base)
            shards = list_of_prefix(base, split, _needed(cache, base))
        else:
            base = local_path(base)
            shards = list_of_folder(Path(base), split, cache)
        return cls(shards, base, (), cache, max_sample_bytes)._checked()

    @classmethod
    def from_urls(
        cls,
        urls: Iterable[str],
        cache: Cache | None = None,
        allow_pipe: bool = False,
        max_sample_bytes: int = MAX_SAMPLE_BYTES,
    ) -> ShardSet:
        """Shards by path or URL, {000..012} braces, * globs and @file lists, in the order given. Raises DatasetError."""
        try:
            locations = expand(urls, _read_list, allow_pipe)
        except FetchError as error:
            raise DatasetError(str(error)) from error
        for location in {location.split(":")[0]: location for location in locations if is_remote(location)}.values():
            _check_url(location)
            _needed(cache, location)
        shards = list_of_locations(locations, cache)
        return cls(shards, None, tuple(locations), cache, max_sample_bytes)._checked()

    def _checked(self) -> ShardSet:
        if not len(self):
            raise DatasetError(
                f"{shown(self.base or self.locations[0])}: {len(self.listed.names)} shards without a sample"
                + "".join(f"; {fault}" for fault in self.faults[:1])
            )
        return self

    def __len__(self) -> int:
        """Samples in all."""
        return int(self.listed.samples.sum())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(self.listed.samples.tolist())

    @property
    def faults(self) -> tuple[str, ...]:
        """What was wrong with shards when they were counted; samples that are lost by it are in no count."""
        return tuple(f"{self.name(shard)}: {fault}" for shard, fault in sorted(self.listed.faults.items()))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of local shards."""
        return tuple(Path(local_path(self.location(shard))) for shard in range(len(self.listed.names)))

    @functools.cached_property
    def is_remote(self) -> bool:
        """Whether any shard is read through the cache."""
        return is_remote(self.base) if self.base is not None else any(map(is_remote, self.locations))

    @functools.cached_property
    def _access(self) -> LocalAccess | CachedAccess:
        if not self.is_remote:
            return LocalAccess()
        assert self.cache is not None
        return CachedAccess(self.cache)

    def location(self, shard: int) -> str:
        """Path or URL; not for messages."""
        return self.locations[shard] if self.base is None else join(self.base, self.listed.names[shard])

    def name(self, shard: int) -> str:
        """For messages and ledgers."""
        location = self.location(shard)
        return shown(location) if is_remote(location) else location.rpartition("/")[2]

    def ranges(self, shard: int) -> np.ndarray:
        """Offset and length of each sample [N, 2]. Raises BadShard."""
        with self._opened(shard):
            return self._ranges_of(shard)[0]

    def fetch(self, shard: int) -> None:
        """Have a remote shard in the cache, unless another process is about to. Raises FetchError."""
        self._access.fetch(self.location(shard), self._expected_bytes(shard))

    def describe(self, shard: int, index: int) -> str:
        """Where a sample stands, for messages. Does not touch the shard."""
        return f"{self.name(shard)} sample {index}"

    def read(self, shard: int, index: int) -> dict[str, bytes | str]:
        """Sample `index` of shard `shard`: "__key__", "__url__" and extension -> bytes.

        Raises BadSample for whatever is wrong with the file's content, BadShard where that is the whole shard.
        """
        with self._opened(shard) as file:
            ranges_N2, fault = self._ranges_of(shard)
            if index >= len(ranges_N2):
                found = f"{len(ranges_N2)} samples, its list says {self.listed.samples[shard]}"
                raise BadShard(f"{self.name(shard)}: {found}{': ' + fault if fault else ''}")
            offset, length = map(int, ranges_N2[index])
            try:
                if length > self.max_sample_bytes:
                    raise Damage(f"{length} bytes, more than the limit of {self.max_sample_bytes}")
                url = shown(self.location(shard))
                targets = functools.partial(self._links.of, shard, file)
                return read_sample(file, offset, length, url, self.max_sample_bytes, targets)
            except (Damage, OSError) as error:
                place = f"{self.describe(shard, index)} at byte {offset}"
                key = f", key {error.key!r}" if isinstance(error, Damage) and error.key else ""
                raise BadSample(f"{place}{key}: {error}", offset) from error

    @contextlib.contextmanager
    def _opened(self, shard: int) -> Iterator[BinaryIO]:
        try:
            with self._access.open(self.location(shard), self._expected_bytes(shard)) as file:
                yield file
        except FetchError as error:
            raise BadShard(str(error), may_pass(error)) from error
        except OSError as error:
            raise BadShard(f"{self.name(shard)}: {error.strerror or error}") from error

    def _ranges_of(self, shard: int) -> tuple[np.ndarray, str | None]:
        """(ranges, what is wrong) of a shard that is open."""

        def load() -> tuple[np.ndarray, str | None]:
            expected, path = int(self.listed.bytes[shard]), self._access.path(self.location(shard))
            found = path.stat().st_size
            ranges_N2, fault = load_ranges(path)
            if found > expected:  # not merely cut off: its samples are others than the list's
                fault, ranges_N2 = f"{found} bytes, its list says {expected}; make the list anew", ranges_N2[:0]
            return ranges_N2, fault

        return self._ranges.get(shard, load)

    def _expected_bytes(self, shard: int) -> int | None:
        return int(self.listed.bytes[shard]) or None


class RangeCache:
    """The byte ranges of the shards that were used last; copies start empty."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: collections.OrderedDict[int, tuple[np.ndarray, str | None]] = collections.OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple:
        return RangeCache, (self.limit_bytes,)

    def get(self, shard: int, load: Callable[[], tuple[np.ndarray, str | None]]) -> tuple[np.ndarray, str | None]:
        if shard not in self._entries:
            self._entries[shard] = load()
            self._bytes += self._entries[shard][0].nbytes
            while self._bytes > self.limit_bytes and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1][0].nbytes
        self._entries.move_to_end(shard)
        return self._entries[shard]


def _check_url(url: str) -> None:
    try:
        check_url(url)
    except FetchError as error:
        raise DatasetError(str(error)) from error


def _needed(cache: Cache | None, url: str) -> Cache:
    if cache is None:
        raise DatasetError(
            f"{shown(url)}: shards that are not local files are read through a cache, and none was given"
        )
    return cache


def _read_list(url: str) -> bytes:
    try:
        return read_small(url, MAX_LIST_BYTES)
    except OSError as error:
        raise FetchError(f"@{shown(url)}: {error.strerror}") from error
