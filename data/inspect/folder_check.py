"""Does a data set's folder say what is in it, and do its shards go together?"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.config import TaskConfig
from data.inspect.problems import Problem, shown, tokenizer
from data.inspect.shard_check import ShardReport
from data.inspect.targets import ShardFile, Target, open_shard
from data.shards import DatasetError, DatasetInfo, is_trained_on
from data.shards.errors import BadSample
from data.shards.files import INFO_FILE, list_name
from data.shards.lists import parse_list
from data.shards.ranges import load_ranges
from data.text.names import alike
from data.text.tokenizer import END_OF_TEXT
from data.text.words import has_word

Reports = dict[ShardFile, ShardReport]


def check_folder(target: Target, reports: Reports, whole: bool, limit: int) -> Iterator[Problem]:
    """Problems that no shard has by itself, at most `limit` of a kind with their places. whole: all splits are there."""
    yield from _check_info(target, reports, whole)
    yield from _check_keys(target, reports, limit)
    yield from _overlaps(target, reports)


def _check_info(target: Target, reports: Reports, whole: bool) -> Iterator[Problem]:
    """dataset.json against what is there."""
    if target.info is None:
        return
    where = str(Path(target.name) / INFO_FILE)
    for split, shards in target.splits.items():
        claimed = target.info.splits.get(split)
        samples = sum(len(reports[shard].keys_N) for shard in shards)
        if claimed is None:
            yield Problem(
                "error", where, f"split {split} is not in it, but {len(shards)} shards of {samples} samples are there"
            )
        elif (claimed.shards, claimed.samples) != (len(shards), samples):
            says = f"{claimed.samples} samples in {claimed.shards} shards"
            remedy = "prepare the data set again, or write the numbers that are found there"
            yield Problem("error", where, f"split {split} has {says}; found {samples} in {len(shards)}; {remedy}")
        yield from _check_list(Path(target.name) / list_name(split), shards, reports)
    yield from _check_names(target.info, where, reports, whole)


def _check_list(path: Path, shards: Sequence[ShardFile], reports: Reports) -> Iterator[Problem]:
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
        # A list leaves out shards that could not be read.
        if listed.get(name) != found.get(name) and (name in listed or found[name]):
            says = f"{name} has {listed.get(name, 'no')} samples in this list; found {found.get(name, 'no such shard')}"
            yield Problem("error", str(path), f"{says}; remove the list, or make it anew with `python -m data.shards`")


def _check_names(info: DatasetInfo, where: str, reports: Reports, whole: bool) -> Iterator[Problem]:
    """Class names, and the token ids of the folder."""
    named: set[int] = set()
    for name in itertools.chain(info.classes, *info.synonyms):
        named |= set(tokenizer().encode(name))
        if not has_word(name):
            yield Problem("error", where, f"the class name {name!r} has no word")
    yield from _check_alike(info, where)
    missing = (named | {END_OF_TEXT}) - set(info.token_ids)
    if missing:
        yield Problem("error", where, f"lacks token_ids of the class names: {shown(missing)}")
    wrong = [token for token in info.token_ids if not 0 <= token < tokenizer().vocab_size]
    if wrong or list(info.token_ids) != sorted(set(info.token_ids)):
        yield Problem(
            "error", where, f"token_ids are not sorted ids of CLIP, each once{f': {wrong[0]}' if wrong else ''}"
        )
    unused = set(info.token_ids) - named - {END_OF_TEXT} - set(wrong)
    trained = [report for shard, report in reports.items() if is_trained_on(shard.split, info.splits)]
    unused = unused.difference(*(report.token_ids for report in trained))
    # Texts that could not be read may have them.
    if whole and unused and not any(report.num_errors for report in trained):
        yield Problem("warning", where, f"{len(unused)} token_ids are in no text of training: {shown(unused)}")


def _check_alike(info: DatasetInfo, where: str) -> Iterator[Problem]:
    """Classes that a task refuses, as it sees no difference between them."""
    encode, most = tokenizer().encode, TaskConfig.max_text
    whole = set(alike(info.classes, encode))
    for one, other in alike(info.classes, lambda name: encode(name, limit=most - 1)):
        names = f"the class names {one!r} and {other!r} are one to the model"
        if (one, other) in whole:
            reason = (
                f"{names}, which sees no letter case and no unusual spaces: put the classes together, or rename one"
            )
        else:
            reason = f"{names} at max_text={most}, which a task has by default: give it more, or rename one"
        yield Problem("error", where, reason)


def _check_keys(target: Target, reports: Reports, limit: int) -> Iterator[Problem]:
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


def _overlaps(target: Target, reports: Reports) -> Iterator[Problem]:
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
