"""Is every sample usable, and does the folder say what is in it?

Shards are read in processes of their own; for every sample 16 bytes come back (hashes of its key and of its content),
so that keys and splits can be compared without keeping samples.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from data.decode import BadSample
from data.inspect.processes import Died, each
from data.inspect.samples import FRAMES, decode
from data.inspect.targets import ShardFile, Target, open_shard
from data.shards import DatasetError, DatasetInfo
from data.shards.files import INFO_FILE, index_path, list_name
from data.shards.lists import parse_list
from data.shards.ranges import Place, load_ranges, scan
from data.tokenizer import END_OF_TEXT, Tokenizer

SHOWN_TOKENS = 5
_PLACE = re.compile(r"^(?: at byte \d+)?(?:, key (?:'.*?'|\".*?\"))?: ")
"""What the reason of a bad sample says of its place after the shard's name; a problem has it in fields of its own."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong. An error makes the exit code 1; a warning is for judgement.

    where        file or folder
    offset, key  byte offset in the shard and key of the sample, where one sample is meant
    """

    severity: Literal["error", "warning"]
    where: str
    reason: str
    offset: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f" byte {self.offset}"
        key = "" if self.key is None else f" key {self.key!r}"
        line = f"{self.severity}: {self.where}{place}{key}: {self.reason}"
        # Names and reasons hold pieces of the data: nothing of them may steer a terminal.
        return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)


@dataclasses.dataclass(frozen=True)
class Job:
    """max_problems: more are counted and not kept."""

    shard: ShardFile
    frames: int
    max_problems: int


@dataclasses.dataclass(frozen=True, eq=False)
class ShardReport:
    """What one shard is like.

    num_errors           of the problems, also of those not kept
    keys_N, contents_N   uint64 hashes by sample; content 0: it could not be decoded
    token_ids            of all texts
    """

    problems: tuple[Problem, ...] = ()
    num_errors: int = 0
    keys_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    contents_N: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    token_ids: frozenset[int] = frozenset()


@dataclasses.dataclass
class Totals:
    """Counts of a whole lint. problems: the first ones, as many as are to be shown."""

    max_problems: int
    shards: int = 0
    samples: int = 0
    errors: int = 0
    warnings: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, problem: Problem) -> bool:
        """Count a problem; whether it is to be shown."""
        self.errors += problem.severity == "error"
        self.warnings += problem.severity == "warning"
        if len(self.problems) < self.max_problems:
            self.problems.append(problem)
            return True
        return False

    def as_json(self) -> str:
        fields = {"version": 1, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1, ensure_ascii=True) + "\n"


def lint(target: Target, totals: Totals, workers: int, whole: bool, frames: int = FRAMES) -> Iterator[Problem]:
    """Problems of the target that are to be shown, as they are found; counts go to `totals`. whole: all splits are there."""
    jobs = [Job(shard, frames, totals.max_problems) for shard in target.shards]
    reports: dict[ShardFile, ShardReport] = {}
    for job, result in each(check_shard, jobs, workers, target.name):
        if isinstance(result, Died):
            reason = "the process that read this shard died: a codec crashed on it, or memory ran out"
            result = ShardReport((Problem("error", str(job.shard.path), reason),), 1)
        reports[job.shard] = dataclasses.replace(result, problems=())
        totals.shards += 1
        totals.samples += len(result.keys_N)
        yield from (problem for problem in result.problems if totals.add(problem))
        totals.errors += result.num_errors - len(result.problems)
    for across in (
        _check_folder(target, reports, whole),
        _check_keys(target, reports, totals.max_problems),
        _overlaps(target, reports),
    ):
        yield from (problem for problem in across if totals.add(problem))


def check_shard(job: Job) -> ShardReport:
    """Read and decode every sample of one shard."""
    path = job.shard.path
    found = _Found(str(path), job.max_problems)
    try:
        places, scan_fault = scan(path)
        ranges_N2, _ = load_ranges(path)
        shards = open_shard(job.shard)
    except OSError as error:
        found.error(f"cannot be read: {error.strerror}")
        return ShardReport(tuple(found.problems), found.count)
    except DatasetError:
        found.error(f"no sample can be read; {scan_fault or 'the tar is empty'}")
        return ShardReport(tuple(found.problems), found.count)
    for fault in shards.faults:
        found.error(fault.removeprefix(f"{path.name}: "))
    keys = {place.offset: place.key for place in places}
    if not shards.faults and index_path(path).is_file():
        names = _index_keys(index_path(path))
        keys = dict(zip(ranges_N2[:, 0].tolist(), names, strict=True)) | keys
        stale = _stale(ranges_N2, names, places, index_path(path).name)
        reason = f"readers that have no index stop here: {scan_fault}" if scan_fault else stale
        if reason:
            found.error(reason)

    info, tokenizer = job.shard.info, _tokenizer()
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
                token_ids = set(tokenizer.encode(text))
                used |= token_ids
                if not token_ids:
                    raise BadSample(f"the text {text[:60]!r} has no word")
                if allowed is not None and token_ids - allowed:
                    raise BadSample(f"{INFO_FILE} lacks token_ids of the text: {_shown(token_ids - allowed)}")
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


def _index_keys(index: Path) -> list[str | None]:
    """The keys in an index that was used, and so is known to be sound."""
    keys = [sample.get("key") for sample in json.loads(index.read_bytes())["samples"]]
    return [key if isinstance(key, str) else None for key in keys]


def _stale(ranges_N2: np.ndarray, names: Sequence[str | None], places: Sequence[Place], index: str) -> str | None:
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


# ------------------------------------------------------------------------------------------ the folder as a whole


def _check_folder(target: Target, reports: dict[ShardFile, ShardReport], whole: bool) -> Iterator[Problem]:
    """dataset.json against what is there."""
    if target.info is None:
        return
    where = str(Path(target.name) / INFO_FILE)
    for split, shards in target.splits.items():
        claimed = target.info.splits.get(split)
        samples = sum(len(reports[shard].keys_N) for shard in shards)
        if claimed is None:
            yield Problem("error", where, f"split {split} is not in it, but {len(shards)} shards are there")
        elif (claimed.shards, claimed.samples) != (len(shards), samples):
            says = f"{claimed.samples} samples in {claimed.shards} shards"
            yield Problem("error", where, f"split {split} has {says}; found {samples} in {len(shards)}")
        yield from _check_list(Path(target.name) / list_name(split), shards, reports)
    yield from _check_names(target.info, where, list(reports.values()), whole)


def _check_list(path: Path, shards: Sequence[ShardFile], reports: dict[ShardFile, ShardReport]) -> Iterator[Problem]:
    """A split's list of shards, which training trusts, against what is there."""
    if not path.is_file():
        return
    try:
        listed = {row.name: row.samples for row in parse_list(path.read_bytes(), path.name).rows()}
    except (DatasetError, OSError) as error:
        yield Problem("error", str(path), str(error).removeprefix(f"{path.name}: "))
        return
    found = {shard.path.name: len(reports[shard].keys_N) for shard in shards}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            says = f"{name} has {listed.get(name, 'no')} samples in it; found {found.get(name, 'no such shard')}"
            yield Problem("error", str(path), f"{says}; remove it, or make it anew with `python -m data.shards`")


def _check_names(info: DatasetInfo, where: str, reports: Sequence[ShardReport], whole: bool) -> Iterator[Problem]:
    """Class names, and the token ids of the folder."""
    tokenizer = _tokenizer()
    named: set[int] = set()
    for name in itertools.chain(info.classes, *info.synonyms):
        token_ids = set(tokenizer.encode(name))
        named |= token_ids
        if not token_ids:
            yield Problem("error", where, f"the class name {name!r} has no word")
    missing = (named | {END_OF_TEXT}) - set(info.token_ids)
    if missing:
        yield Problem("error", where, f"lacks token_ids of the class names: {_shown(missing)}")
    wrong = [token for token in info.token_ids if not 0 <= token < tokenizer.vocab_size]
    if wrong or list(info.token_ids) != sorted(set(info.token_ids)):
        yield Problem(
            "error", where, f"token_ids are not sorted ids of CLIP, each once{f': {wrong[0]}' if wrong else ''}"
        )
    unused = set(info.token_ids) - named - {END_OF_TEXT} - set(wrong)
    unused = unused.difference(*(report.token_ids for report in reports))
    # Texts that could not be read may have them.
    if whole and unused and not any(report.num_errors for report in reports):
        yield Problem("warning", where, f"{len(unused)} token_ids are in no text: {_shown(unused)}")


def _check_keys(target: Target, reports: dict[ShardFile, ShardReport], limit: int) -> Iterator[Problem]:
    """Keys that come again in a split, the first ones with their places."""
    for shards in target.splits.values():
        places = _Places(shards, [len(reports[shard].keys_N) for shard in shards])
        hashes_N = _joined([reports[shard].keys_N for shard in shards])
        order = np.argsort(hashes_N, kind="stable")
        again = np.flatnonzero(hashes_N[order[1:]] == hashes_N[order[:-1]])
        pairs = sorted((int(order[at + 1]), int(order[at])) for at in again)
        for second, first in pairs[:limit]:
            (shard, offset, key), (other, there, _) = places.of(second), places.of(first)
            reason = f"the key comes twice in the split, also in {other.path.name} at byte {there}"
            yield Problem("error", str(shard.path), reason, offset, key)
        for _ in pairs[limit:]:
            yield Problem("error", target.name, "a key comes twice in a split")


def _overlaps(target: Target, reports: dict[ShardFile, ShardReport]) -> Iterator[Problem]:
    """Images, clips or texts that two splits have in common."""
    splits = {name: _joined([reports[shard].contents_N for shard in shards]) for name, shards in target.splits.items()}
    for (one, one_N), (two, two_N) in itertools.combinations(splits.items(), 2):
        shared = np.intersect1d(one_N, two_N)
        shared = shared[shared != 0]
        if not len(shared):
            continue
        at = int(np.flatnonzero(two_N == shared[0])[0])
        shards = target.splits[two]
        shard, offset, key = _Places(shards, [len(reports[shard].keys_N) for shard in shards]).of(at)
        count = int(np.isin(two_N, shared).sum())
        reason = f"{count} samples of split {two} have the content of samples of split {one}; one of them"
        yield Problem("warning", target.name, f"{reason}: {shard.path.name} byte {offset} key {key!r}")


@dataclasses.dataclass(frozen=True)
class _Places:
    """Samples of a split numbered through its shards."""

    shards: Sequence[ShardFile]
    sizes: Sequence[int]

    def of(self, number: int) -> tuple[ShardFile, int, str | None]:
        """(shard, byte offset, key or None if the sample cannot be read) of a sample."""
        ends = np.cumsum(self.sizes)
        nth = int(np.searchsorted(ends, number, side="right"))
        index = number - int(ends[nth] - self.sizes[nth])
        shards = open_shard(self.shards[nth])
        try:
            key = str(shards.read(0, index)["__key__"])
        except BadSample:
            key = None
        return self.shards[nth], int(load_ranges(self.shards[nth].path)[0][index, 0]), key


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _hash(data: bytes | str) -> int:
    data = data if isinstance(data, bytes) else data.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _shown(token_ids: Iterable[int]) -> str:
    some = sorted(token_ids)
    pieces = [repr(_tokenizer().decode([i])) if 0 <= i < Tokenizer.vocab_size else "?" for i in some[:SHOWN_TOKENS]]
    shown = ", ".join(f"{i} ({piece})" for i, piece in zip(some, pieces, strict=False))
    return shown + (f" and {len(some) - SHOWN_TOKENS} more" if len(some) > SHOWN_TOKENS else "")


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer.load()


@functools.lru_cache(maxsize=16)
def _token_set(folder: Path) -> frozenset[int]:
    info = ShardFile(folder, folder=folder).info
    return frozenset(info.token_ids) if info else frozenset()


def _allowed(shard: ShardFile) -> frozenset[int] | None:
    return _token_set(shard.folder) if shard.folder else None
