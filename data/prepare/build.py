"""A source to a complete data set folder: shards by worker processes, and a summary of what was left out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.prepare.progress import PROGRESS_FILE, SUMMARY_FILE, Done, Plan, Work, shard_path
from data.prepare.source import Failure, Item, PublicSet, ShardJob, SplitJobs, is_text, key_of
from data.shards import (
    DatasetError,
    DatasetInfo,
    SplitInfo,
    is_trained_on,
    write_info,
    write_shard,
    write_shard_list,
)
from data.text.tokenizer import END_OF_TEXT, Tokenizer
from data.text.words import has_word
from data.workers.pool import Died, each

EXAMPLES = 3
"""Names that are given for each reason."""
MAX_REASONS = 200
OTHER_REASONS = "other reasons"
WORST_SHARDS = 10

Failures = dict[str, list[Any]]


def check_splits(out: Path, source: PublicSet) -> None:
    """Raises DatasetError if the lists alone tell that a split gets no sample, before any is read."""
    for split, parts in source.splits.items():
        if next(parts.jobs(), None) is None:
            failures = _known_failures(parts)
            _print_failures(failures)
            listed = f"; {_count(failures)} failures, see above" if failures else ""
            raise DatasetError(f"{out}: split {split} has no sample{listed}; nothing was made")


def build(work: Work, source: PublicSet, plan: Plan, workers: int) -> None:
    """Write the shards that are not done yet, then summary.json and dataset.json.

    Raises DatasetError if a split gets no sample.
    """
    started = time.monotonic() - max((done.seconds for done in work.done.values()), default=0.0)
    counts: dict[str, int] = {}
    for split, parts in source.splits.items():
        calls = _calls(work, split, parts, counts)
        known = sum(done.samples + _count(done.failures) for done in work.done.values() if done.split == split)
        with tqdm(
            desc=f"{work.out.name} {split}", unit=" samples", total=parts.size, initial=known, disable=None
        ) as bar:
            in_processes = 0 if workers == 1 else workers
            for _, done in each(_result, calls, in_processes, preload=("data.prepare.__main__",)):
                if isinstance(done, Died):
                    raise DatasetError(
                        "a worker process was killed, probably by the out-of-memory killer: rerun the same command to continue, "
                        "with fewer --workers"
                    )
                work.add(dataclasses.replace(done, seconds=time.monotonic() - started))
                bar.update(done.samples + _count(done.failures))
    _finish(work, source, plan, counts, time.monotonic() - started)


def _result(call: Callable[[], Done]) -> Done:
    return call()


def _calls(work: Work, split: str, parts: SplitJobs, counts: dict[str, int]) -> Iterator[Callable[[], Done]]:
    """What is left to do. Enters the number of shards into `counts` at the end."""
    number = -1
    for number, job in enumerate(parts.jobs()):
        if (split, number) not in work.done:
            yield functools.partial(make_shard, work.out, split, number, job)
    counts[split] = number + 1


def make_shard(out: Path, split: str, number: int, job: ShardJob) -> Done:
    """Write one shard; in a worker. A shard may be empty: numbers of shards have no gaps."""
    path = shard_path(out, split, number)
    failures: Failures = {}
    token_ids: set[int] = set()
    samples = 0

    def keyed() -> Iterator[dict[str, Any]]:
        nonlocal samples
        for index, item in enumerate(job.items(), start=job.first):
            if isinstance(item, Failure):
                add_failures(failures, item.reason, 1, [item.name])
                continue
            if not all(is_text(text) for text in _texts_of(item)):
                add_failures(failures, "text that cannot be written as UTF-8", 1, [item.name])
                continue
            if not all(map(has_word, item.texts)):
                add_failures(failures, "a text without a word", 1, [item.name])
                continue
            for text in item.texts:
                token_ids.update(_tokenizer().encode(text))
            samples += 1
            yield {"__key__": key_of(index, item.name), **item.members}

    write_shard(path, keyed())
    return Done(
        split=split,
        shard=number,
        samples=samples,
        tar_bytes=path.stat().st_size,
        failures=failures,
        token_ids=tuple(sorted(token_ids)),
    )


def _texts_of(item: Item) -> Iterator[str]:
    """All texts that are written, those of a JSON member as one."""
    for member in item.members.values():
        if isinstance(member, dict):
            yield json.dumps(member, ensure_ascii=False)
        elif isinstance(member, str):
            yield member


def add_failures(failures: Failures, reason: str, count: int, names: Iterable[str]) -> None:
    if reason not in failures and len(failures) >= MAX_REASONS:
        reason = OTHER_REASONS
    entry = failures.setdefault(reason, [0, []])
    entry[0] += count
    entry[1] += itertools.islice(names, EXAMPLES - len(entry[1]))


def _finish(work: Work, source: PublicSet, plan: Plan, counts: dict[str, int], seconds: float) -> None:
    names = itertools.chain(source.classes, *source.synonyms)
    token_ids = {END_OF_TEXT}.union(*(_tokenizer().encode(name) for name in names))
    splits: dict[str, SplitInfo] = {}
    report: dict[str, Any] = {}
    for split, parts in source.splits.items():
        failures = _known_failures(parts)
        shards = [work.done[split, number] for number in range(counts[split])]
        for done in shards:
            if is_trained_on(split, source.splits):
                token_ids.update(done.token_ids)
            for reason, (count, examples) in done.failures.items():
                add_failures(failures, reason, count, examples)
        samples = sum(done.samples for done in shards)
        splits[split] = SplitInfo(samples=samples, shards=len(shards))
        write_shard_list(work.out, split)
        worst = sorted((done for done in shards if done.failures), key=lambda done: -_share_failed(done))
        report[split] = {
            "samples": samples,
            "shards": len(shards),
            "bytes": sum(done.tar_bytes for done in shards),
            "failed": _count(failures),
            "failures": {
                reason: {"count": count, "examples": examples} for reason, (count, examples) in _sorted(failures)
            },
            "worst_shards": [
                {"shard": done.shard, "samples": done.samples, "failed": _count(done.failures)}
                for done in worst[:WORST_SHARDS]
            ],
        }
        _print_report(work.out, split, report[split], failures)
        if not samples:
            raise DatasetError(f"{work.out}: split {split} has no sample; {_count(failures)} failures, see above")
    info = DatasetInfo(
        kind=source.kind,
        classes=source.classes,
        synonyms=source.synonyms,
        metrics=source.metrics,
        token_ids=tuple(sorted(token_ids)),
        splits=splits,
    )
    summary = {
        "version": 1,
        "plan": plan,
        "kind": source.kind,
        "classes": len(source.classes),
        "splits": report,
        "seconds": round(seconds, 1),
    }
    (work.out / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_info(work.out, info)
    (work.out / PROGRESS_FILE).unlink()


def _known_failures(parts: SplitJobs) -> Failures:
    """Those that the lists tell."""
    failures: Failures = {}
    for failure in parts.failures:
        add_failures(failures, failure.reason, 1, [failure.name])
    return failures


def _sorted(failures: Failures) -> list[tuple[str, list[Any]]]:
    return sorted(failures.items(), key=lambda pair: (-pair[1][0], pair[0]))


def _print_report(out: Path, split: str, report: dict[str, Any], failures: Failures) -> None:
    counts = f"{report['samples']} samples, {report['shards']} shards, {report['bytes']} bytes"
    print(f"{out}: {split}: {counts}, {report['failed']} failures")
    _print_failures(failures)


def _print_failures(failures: Failures) -> None:
    for reason, (count, examples) in _sorted(failures):
        names = (name if name.isprintable() else ascii(name) for name in examples)
        print(f"  {count} x {reason}: {', '.join(names)}")


def _share_failed(done: Done) -> float:
    failed = _count(done.failures)
    return failed / (failed + done.samples)


def _count(failures: Failures) -> int:
    return sum(count for count, _ in failures.values())


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    """One for each process: it keeps the words it has met."""
    return Tokenizer.load()
