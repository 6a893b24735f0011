"""Is every sample of a shard usable? In a process of its own: for every sample 16 bytes come back (hashes of its key and of its
content), so that keys and splits can be compared without keeping samples."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.inspect.problems import Problem, shown, tokenizer
from data.inspect.samples import decode
from data.inspect.targets import ShardFile, open_shard
from data.shards import DatasetError, is_trained_on
from data.shards.errors import BadSample
from data.shards.files import INFO_FILE, index_path
from data.shards.ranges import SampleRange, load_ranges, read_index, survey

_PLACE = re.compile(r"^(?: at byte \d+)?(?:, key (?:'.*?'|\".*?\"))?: ")
"""What the reason of a bad sample says of its place after the shard's name; a problem has it in fields of its own."""


@dataclasses.dataclass(frozen=True)
class CheckJob:
    """max_problems: more are counted and not kept."""

    shard: ShardFile
    frames: int
    max_problems: int


@dataclasses.dataclass(frozen=True, eq=False)
class ShardReport:
    """What one shard is like.

    num_errors           also of those not kept
    keys_N, contents_N   uint64 hashes by sample; content 0: it could not be decoded
    token_ids            of all texts
    """

    problems: tuple[Problem, ...] = ()
    num_errors: int = 0
    keys_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    contents_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    token_ids: frozenset[int] = frozenset()


def check_shard(job: CheckJob) -> ShardReport:
    """Read and decode every sample of one shard."""
    path = job.shard.path
    found = _Found(str(path), job.max_problems)
    try:
        surveyed = survey(path)
        places, scan_fault = surveyed.places, surveyed.fault
        ranges_N2, _ = load_ranges(path)
        shards = open_shard(job.shard)
    except OSError as error:
        found.error(f"cannot be read: {error.strerror}")
        return ShardReport(tuple(found.problems), found.count)
    except DatasetError:
        if scan_fault is None and not places:  # data.prepare leaves such a one where no sample of a shard could be used
            return ShardReport(
                (Problem("warning", str(path), "a tar without a sample; nothing reads it, it may stay"),)
            )
        lost = scan_fault or f"{index_path(path).name} has none, the tar {len(places)}: remove it"
        found.error(f"no sample can be read; {lost}; make the shard again, or remove it and make the list anew")
        return ShardReport(tuple(found.problems), found.count)
    for fault in shards.faults:
        found.error(fault.removeprefix(f"{path.name}: "))
    if surveyed.caution and not scan_fault:
        found.error(surveyed.caution)
    keys = {place.offset: place.key for place in places}
    index_fault = _index_fault(path)
    if index_fault:
        found.error(f"{index_path(path).name} is not used ({index_fault})")
    elif not shards.faults and index_path(path).is_file():
        names = _index_keys(index_path(path))
        keys = dict(zip(ranges_N2[:, 0].tolist(), names, strict=True)) | keys
        stale = _stale(ranges_N2, names, places, index_path(path).name)
        reason = f"readers that have no index stop here: {scan_fault}" if scan_fault else stale
        if reason:
            found.error(reason)

    info = job.shard.info
    allowed = _allowed(job.shard)
    used: set[int] = set()
    keys_N, contents_N = (np.zeros(len(shards), np.uint64) for _ in range(2))
    for index in range(len(shards)):
        offset = int(ranges_N2[index, 0])
        key = keys.get(offset)
        try:
            sample = shards.read(0, index)
            key = str(sample["__key__"])
            decoded = decode(sample, info, job.frames)
            contents_N[index] = _hash(decoded.source)
            for text in decoded.texts:
                token_ids = set(tokenizer().encode(text))
                used |= token_ids
                if allowed is not None and token_ids - allowed:
                    raise BadSample(f"{INFO_FILE} lacks token_ids of the text: {shown(token_ids - allowed)}")
        except BadSample as error:
            reason = error.reason.removeprefix(shards.describe(0, index))
            found.error(_PLACE.sub("", reason), offset, key)
        except Exception as error:  # not foreseen by the decoders: training would stop here
            found.error(f"unexpected {type(error).__name__}: {error}", offset, key)
        keys_N[index] = _hash((key or f"\0{offset}").encode("utf-8", "surrogateescape"))
    return ShardReport(tuple(found.problems), found.count, keys_N, contents_N, frozenset(used))


@dataclasses.dataclass
class _Found:
    """Errors of one shard."""

    where: str
    limit: int
    problems: list[Problem] = dataclasses.field(default_factory=list)
    count: int = 0

    def error(self, reason: str, offset: int | None = None, key: str | None = None) -> None:
        self.count += 1
        if len(self.problems) < self.limit:
            self.problems.append(Problem("error", self.where, reason, offset, key))


def _index_fault(path: Path) -> str | None:
    """Why the shard's index, if there is one, is looked past."""
    try:
        read_index(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    return None


def _index_keys(index: Path) -> list[str | None]:
    """The keys in an index that was used, and so is known to be sound."""
    keys = [sample.get("key") for sample in json.loads(index.read_bytes())["samples"]]
    return [key if isinstance(key, str) else None for key in keys]


def _stale(ranges_N2: np.ndarray, names: Sequence[str | None], places: Sequence[SampleRange], index: str) -> str | None:
    """How an index that was used differs from the headers of the tar."""
    claimed = [(offset, length) for offset, length in ranges_N2.tolist()]
    if len(claimed) != len(places):
        return f"{index} has {len(claimed)} samples, the tar {len(places)}; remove it, or prepare the shard again"
    for number, (claim, name, place) in enumerate(zip(claimed, names, places, strict=True)):
        if claim != (place.offset, place.length) or name not in (None, place.key):
            return (
                f"{index} sample {number}: key {name!r}, {claim[1]} bytes at {claim[0]}, but the tar has key {place.key!r}, "
                f"{place.length} bytes at {place.offset}; remove it, or prepare the shard again"
            )
    return None


def _hash(data: bytes | str) -> int:
    data = data if isinstance(data, bytes) else data.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=16)
def _token_set(folder: Path) -> frozenset[int]:
    info = ShardFile(folder, folder=folder).info
    return frozenset(info.token_ids) if info else frozenset()


def _allowed(shard: ShardFile) -> frozenset[int] | None:
    """What the texts of the shard may have: all that dataset.json lists, in a split whose texts make the vocabulary."""
    info = shard.info
    if shard.folder is None or info is None or not is_trained_on(shard.split, info.splits):
        return None
    return _token_set(shard.folder)
