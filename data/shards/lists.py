"""The list of a split's shards: all that opening reads, however many there are.

    {"version": 1, "shards": [{"name": "train-000000.tar", "samples": 1000, "bytes": 51200000}, ...]}

A row may have a `fault`: what was wrong with the shard when it was counted. A row of 0 bytes says nothing of its shard, which could
not be read: it is counted again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.shards.errors import DatasetError
from data.shards.files import check_split, list_name, replacing
from data.shards.ranges import MAX_INDEX_BYTES, index_of, load_ranges, parse_index, scan
from data.transport import (
    Cache,
    FetchError,
    NotText,
    TransientError,
    is_remote,
    join,
    local_path,
    read_small,
    scheme_of,
    shown,
    sibling,
    text_of,
)

MAX_LIST_BYTES = 1 << 30
COUNTING_THREADS = 16
Progress = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class ShardRow:
    name: str
    samples: int
    bytes: int
    fault: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class ShardList:
    """samples, bytes: int64 [S], of each shard; faults: by number of the shard."""

    names: tuple[str, ...]
    samples: np.ndarray
    bytes: np.ndarray
    faults: dict[int, str]

    @classmethod
    def of(cls, rows: Sequence[ShardRow]) -> ShardList:
        return cls(
            names=tuple(row.name for row in rows),
            samples=np.array([row.samples for row in rows], dtype=np.int64),
            bytes=np.array([row.bytes for row in rows], dtype=np.int64),
            faults={number: row.fault for number, row in enumerate(rows) if row.fault},
        )

    def digest(self, *facts: Any) -> str:
        """A few characters that follow from the shards and the facts, and not from where the shards lie."""
        names = [name.partition("?")[0].rpartition("/")[2] for name in self.names]
        content = json.dumps([names, self.samples.tolist(), self.bytes.tolist(), *facts])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def rows(self) -> list[ShardRow]:
        numbers = zip(self.names, self.samples.tolist(), self.bytes.tolist(), strict=True)
        return [ShardRow(*row, self.faults.get(number, "")) for number, row in enumerate(numbers)]


def write_list(path: Path, shards: ShardList) -> None:
    rows = [
        {key: value for key, value in dataclasses.asdict(row).items() if value != "" or key != "fault"}
        for row in shards.rows()
    ]
    with replacing(path) as file:
        file.write(json.dumps({"version": 1, "shards": rows}, ensure_ascii=False, separators=(",", ":")).encode())


def parse_list(content: bytes, place: str) -> ShardList:
    """Raises DatasetError."""
    try:
        data = json.loads(text_of(content, place))
        if data["version"] != 1:
            raise ValueError(f"version {data['version']!r}, expected 1")
        rows = data["shards"]
        shards = ShardList(
            names=tuple([str(row["name"]) for row in rows]),
            samples=np.array([row["samples"] for row in rows], dtype=np.int64),
            bytes=np.array([row["bytes"] for row in rows], dtype=np.int64),
            faults={number: str(row["fault"]) for number, row in enumerate(rows) if row.get("fault")},
        )
    except NotText as error:
        raise DatasetError(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{place}: not a list of shards ({type(error).__name__}: {error}); remove it, or make it anew with `python -m data.shards`"
        ) from error
    if rows and min(shards.samples.min(), shards.bytes.min()) < 0:
        raise DatasetError(f"{place}: negative numbers in a list of shards")
    return shards


def write_shard_list(directory: Path | str, split: str, progress: Progress = lambda done: None) -> ShardList:
    """Count the folder's `<split>-*.tar`, by their indexes where they have one, and write the split's list of those that can be read.

    For makers of shards that do not use write_shards, and for shards of others. Raises DatasetError.
    """
    check_split(split)
    directory = Path(directory)
    names = _names(directory, split)
    if not names:
        raise DatasetError(f"{directory} has no shard {split}-*.tar")
    shards = count_shards([str(directory / name) for name in names], None, progress)
    shards = dataclasses.replace(shards, names=tuple(names))
    write_list(directory / list_name(split), _read_ones(shards))
    return shards


def list_of_folder(directory: Path, split: str, cache: Cache | None) -> ShardList:
    """Of a local folder: its list, completed by shards that it does not name. Raises DatasetError.

    The list is trusted: no shard is looked at here. What was counted is kept in the folder, or else in the cache.
    """
    own, kept = directory / list_name(split), _kept_path(cache, [str(directory.resolve()), split])
    known = next((_read(path) for path in (own, kept) if path is not None and path.is_file()), None)
    names = _names(directory, split)
    listed = set(_read_ones(known).names) if known else set()
    new = [name for name in names if name not in listed]
    if known and any(not _is_name(name, split) for name in known.names):
        raise DatasetError(f"{own}: names must be {split}-*.tar; make it anew with `python -m data.shards {directory}`")
    if not names and not known:
        present = sorted({path.name.rsplit("-", 1)[0] for path in directory.glob("*-*.tar")})
        found = f"splits {', '.join(present)}" if present else "no shards" if directory.is_dir() else "no such folder"
        raise DatasetError(f"{directory} has no shard {split}-*.tar; found: {found}")
    if known and not new:
        return known
    counted = count_shards([str(directory / name) for name in new], None)
    rows = {row.name: row for row in known.rows()} if known else {}
    rows |= {name: dataclasses.replace(row, name=name) for row, name in zip(counted.rows(), new, strict=True)}
    shards = ShardList.of([rows[name] for name in sorted(rows)])
    if counted.bytes.any():
        _keep(_read_ones(shards), own if os.access(directory, os.W_OK) else kept)
    return shards


def list_of_prefix(prefix: str, split: str, cache: Cache) -> ShardList:
    """Below a URL, where names cannot be looked for: there must be a list. Raises DatasetError."""
    url = join(prefix, list_name(split))
    try:
        shards = parse_list(read_small(url, MAX_LIST_BYTES, cache.options), shown(url))
    except FetchError as error:
        raise DatasetError(
            f"{error}; a data set below a URL needs this list: `python -m data.shards FOLDER` makes it before the folder is copied there"
        ) from error
    if any(not _is_name(name, split) for name in shards.names):
        raise DatasetError(f"{shown(url)}: names must be {split}-*.tar")
    return shards


def list_of_locations(locations: Sequence[str], cache: Cache | None) -> ShardList:
    """Of shards anywhere, in this order; counted once and kept in the cache. Remote ones without an index are fetched for it.

    Local files are counted again where their size has changed. Raises DatasetError.
    """
    kept = _kept_path(cache, locations)
    rows = _read(kept).rows() if kept is not None and kept.is_file() else []
    if len(rows) != len(locations):
        rows = [ShardRow("", 0, 0)] * len(locations)
    new = [
        n
        for n, (row, place) in enumerate(zip(rows, locations, strict=True))
        if not row.bytes or row.bytes != _size(place, row.bytes)
    ]
    if not new:
        return ShardList.of(rows)
    counted = count_shards([locations[n] for n in new], cache)
    for number, row in zip(new, counted.rows(), strict=True):
        rows[number] = row
    shards = ShardList.of(rows)
    if counted.bytes.any():
        _keep(shards, kept)
    return shards


def _size(location: str, known: int) -> int | None:
    """Of a local file, None if it cannot be told; of a remote one what is known."""
    if is_remote(location):
        return known
    try:
        return os.stat(local_path(location)).st_size
    except OSError:
        return None


def _read_ones(shards: ShardList) -> ShardList:
    """Without the rows of shards that could not be read."""
    if shards.bytes.all():
        return shards
    return ShardList.of([row for row in shards.rows() if row.bytes])


def count_shards(locations: Sequence[str], cache: Cache | None, progress: Progress = lambda done: None) -> ShardList:
    """Their list under the names that may be shown; those that cannot be read have 0 bytes and a fault.

    Raises DatasetError if one cannot be reached: order needs all counts.
    """
    rows = []
    with ThreadPoolExecutor(COUNTING_THREADS) as pool:
        for row in pool.map(lambda location: _count(location, cache), locations):
            rows.append(row)
            progress(1)
    return ShardList.of(rows)


def _count(location: str, cache: Cache | None) -> ShardRow:
    name = shown(location)
    try:
        if not is_remote(location):
            path = Path(local_path(location))
            ranges_N2, fault = load_ranges(path)
            return ShardRow(name, len(ranges_N2), path.stat().st_size, fault or "")
        assert cache is not None
        return _count_remote(location, name, cache)
    except FetchError as error:
        if isinstance(error, TransientError) or isinstance(error.__cause__, TransientError):
            raise DatasetError(f"{error}; without a list of shards all have to be counted first") from error
        return ShardRow(name, 0, 0, str(error).removeprefix(f"{name}: "))  # it answers, but is no shard, or not now
    except OSError as error:
        return ShardRow(name, 0, 0, error.strerror or str(error))


def _count_remote(location: str, name: str, cache: Cache) -> ShardRow:
    if scheme_of(location) != "pipe" and not cache.has(location):
        try:
            content = read_small(sibling(location, ".index.json"), MAX_INDEX_BYTES, cache.options)
            ranges_N2, fault = parse_index(content)
            return ShardRow(name, len(ranges_N2), json.loads(content)["tar_bytes"], fault or "")
        except (FetchError, ValueError):
            pass  # no index: count for ourselves
    with cache.open(location, check_and_index) as file:
        ranges_N2, fault = load_ranges(cache.path(location))
        return ShardRow(name, len(ranges_N2), os.fstat(file.fileno()).st_size, fault or "")


def check_and_index(tar: Path, index: Path) -> None:
    """What is done to a fetched shard before it counts as one. Raises FetchError if it holds no sample: an error page, for one."""
    places, fault = scan(tar)
    if not places:
        raise FetchError(fault or "a tar without a sample")
    with replacing(index) as file:
        file.write(index_of(places, tar.stat().st_size, fault))


def _names(directory: Path, split: str) -> list[str]:
    """One pass over the folder's names."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if _is_name(entry.name, split))
    except OSError:
        return []


def _is_name(name: str, split: str) -> bool:
    return name.startswith(f"{split}-") and name.endswith(".tar") and "/" not in name


def _read(path: Path) -> ShardList:
    if path.stat().st_size > MAX_LIST_BYTES:
        raise DatasetError(f"{path}: more than {MAX_LIST_BYTES} bytes")
    return parse_list(path.read_bytes(), str(path))


def _kept_path(cache: Cache | None, names: Iterable[str]) -> Path | None:
    if cache is None:
        return None
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:40]
    return cache.folder / "lists" / f"{digest}.json"


def _keep(shards: ShardList, path: Path | None) -> None:
    """Optional: where it cannot be written, the next start counts again. A list without a sample may soon be wrong."""
    if path is None or not shards.samples.any():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_list(path, shards)
    except OSError:
        pass
