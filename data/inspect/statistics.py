"""What is in a data set: a tally of every shard, added up by split."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from data.decode.video import open_container, video_stream
from data.inspect.samples import Decoded, decode
from data.inspect.targets import ShardFile, Target, open_shard
from data.shards import DatasetError, DatasetInfo
from data.shards.errors import BadSample
from data.text.tokenizer import Tokenizer
from data.workers.pool import Died, each

LONGEST = 10
SHOWN_CLASSES = 40


@dataclasses.dataclass
class Tally:
    """Counts of some samples. Everything is bounded by how many different values there are, not by samples.

    sizes      of (width, height)      seconds, frames, fps, codecs   of clips
    captions   texts of a sample       words, tokens                  of a text
    labels     class numbers           unknown                        tokens that dataset.json does not list
    longest    (letters, tokens, word) colour                         sum of mean colours, and how many
    """

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    unreadable: int = 0
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    seconds: Counter[float] = dataclasses.field(default_factory=Counter)
    frames: Counter[int] = dataclasses.field(default_factory=Counter)
    fps: Counter[float] = dataclasses.field(default_factory=Counter)
    codecs: Counter[str] = dataclasses.field(default_factory=Counter)
    captions: Counter[int] = dataclasses.field(default_factory=Counter)
    words: Counter[int] = dataclasses.field(default_factory=Counter)
    tokens: Counter[int] = dataclasses.field(default_factory=Counter)
    labels: Counter[int] = dataclasses.field(default_factory=Counter)
    unknown: Counter[int] = dataclasses.field(default_factory=Counter)
    longest: set[tuple[int, int, str]] = dataclasses.field(default_factory=set)
    colour: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(4))

    def add(self, other: Tally) -> None:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, set):
                self.longest = set(heapq.nlargest(LONGEST, mine | theirs))
            else:
                setattr(self, field.name, mine + theirs)


@dataclasses.dataclass(frozen=True)
class Report:
    name: str
    info: DatasetInfo | None
    splits: dict[str, Tally]


@dataclasses.dataclass(frozen=True)
class MeasureJob:
    shard: ShardFile
    frames: int


def measure(target: Target, workers: int, frames: int) -> Report:
    """Tallies of all splits of the target."""
    splits = {split: Tally() for split in target.splits}
    jobs = [MeasureJob(shard, frames) for shard in target.shards]
    for job, result in tqdm(each(tally_shard, jobs, workers), target.name, len(jobs), unit=" shards", disable=None):
        if isinstance(result, Died):
            raise DatasetError(f"{job.shard.path}: the process that read it died; see `python -m data.inspect lint`")
        splits[job.shard.split].add(result)
    return Report(target.name, target.info, splits)


def tally_shard(job: MeasureJob) -> Tally:
    """Read and decode every sample of one shard."""
    tally = Tally(shards=1, bytes=job.shard.path.stat().st_size)
    info, tokenizer = job.shard.info, _tokenizer()
    listed = frozenset(info.token_ids) if info else None
    try:
        shards = open_shard(job.shard)
    except DatasetError:
        return tally
    for index in range(len(shards)):
        tally.samples += 1
        try:
            _count(tally, decode(shards.read(0, index), info, job.frames), tokenizer, listed)
        except BadSample:
            tally.unreadable += 1
    return tally


def _count(tally: Tally, decoded: Decoded, tokenizer: Tokenizer, listed: frozenset[int] | None) -> None:
    pixels = decoded.frames_THWC
    if pixels is not None:
        _, height, width, _ = pixels.shape
        tally.sizes[width, height] += 1
        tally.colour += [*pixels.mean(axis=(0, 1, 2)), 1]
        if decoded.is_clip:
            _count_clip(tally, decoded.source)
    if decoded.label is not None:
        tally.labels[decoded.label] += 1
    if decoded.texts:
        tally.captions[len(decoded.texts)] += 1
    for text in decoded.texts:
        words = tokenizer.words(text)
        token_ids = tokenizer.encode(text)
        tally.words[len(words)] += 1
        tally.tokens[len(token_ids)] += 1
        if listed is not None:
            tally.unknown.update(i for i in token_ids if i not in listed)
        long = heapq.nlargest(LONGEST, set(words), key=len)
        tally.longest.update((len(word), len(tokenizer.encode(word)), word) for word in long)
    if len(tally.longest) > 100 * LONGEST:
        tally.longest = set(heapq.nlargest(LONGEST, tally.longest))


def _count_clip(tally: Tally, data: bytes) -> None:
    """What the headers of a clip say; decode_video has accepted it before."""
    with open_container(data) as container:
        stream = video_stream(container)
        frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        rate = float(stream.average_rate or 0)
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = container.duration / av.time_base if container.duration else frames / rate if rate else 0.0
        tally.frames[frames] += 1
        tally.fps[round(rate, 2)] += 1
        tally.seconds[round(seconds, 1)] += 1
        tally.codecs[stream.codec_context.name] += 1


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer.load()


# ------------------------------------------------------------------------------------------------- writing it down


def summary(counts: Counter[Any]) -> dict[str, float]:
    """min, median, p95, max and mean of counted numbers."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    total = int(ends[-1])

    def quantile(share: float) -> float:
        return values[int(np.searchsorted(ends, max(1, np.ceil(share * total))))]

    mean = sum(value * count for value, count in counts.items()) / total
    return {
        "min": values[0],
        "median": quantile(0.5),
        "p95": quantile(0.95),
        "max": values[-1],
        "mean": round(mean, 3),
    }


def as_json(report: Report) -> str:
    tokenizer = _tokenizer()
    names = report.info.classes if report.info else ()
    splits = {}
    for split, tally in report.splits.items():
        numbers = {name: summary(counts) for name, counts in _distributions(tally).items()}
        splits[split] = {
            "shards": tally.shards,
            "bytes": tally.bytes,
            "samples": tally.samples,
            "unreadable": tally.unreadable,
            **numbers,
            "codecs": dict(tally.codecs),
            "classes": {name: tally.labels[number] for number, name in enumerate(names)},
            "unknown_tokens": {tokenizer.decode([i]).strip(): count for i, count in tally.unknown.most_common(LONGEST)},
            "longest_words": [word for _, _, word in _longest(tally)],
            "mean_colour": _colour(tally),
        }
    kind = report.info.kind if report.info else None
    return json.dumps({"version": 1, "name": report.name, "kind": kind, "splits": splits}, indent=1) + "\n"


def as_text(report: Report) -> str:
    """One column a split, and what does not fit into columns below."""
    columns = {split: _column(tally) for split, tally in report.splits.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = report.name
    if report.info:
        head += f": {report.info.kind}, {len(report.info.classes)} classes, {len(report.info.token_ids)} token ids"
    rows = [["", *(split or "all" for split in columns)]]
    rows += [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    if report.info and report.info.classes:
        rows += [["class", *("samples" for _ in columns)]]
        for number, name in enumerate(report.info.classes[:SHOWN_CLASSES]):
            rows.append([f"  {name}", *(str(tally.labels[number]) for tally in report.splits.values())])
    lines = [head, *_table(rows)]
    hidden = len(report.info.classes) - SHOWN_CLASSES if report.info else 0
    if hidden > 0:
        lines.append(f"  and {hidden} more classes (--json has all)")
    for split, tally in report.splits.items():
        if tally.longest:
            words = ", ".join(f"{word[:40]} ({tokens})" for _, tokens, word in _longest(tally))
            lines.append(f"longest words{f' of {split}' if split else ''} (tokens): {words}")
        if tally.unknown:
            some = ", ".join(f"{_tokenizer().decode([i]).strip()} x{n}" for i, n in tally.unknown.most_common(LONGEST))
            lines.append(f"tokens that dataset.json lacks{f' in {split}' if split else ''}: {some}")
    return "\n".join(
        "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line) for line in lines
    )


def _column(tally: Tally) -> dict[str, str]:
    """Name of a row -> what one split has there."""
    cells = {
        "samples": str(tally.samples),
        "unreadable": str(tally.unreadable),
        "shards": str(tally.shards),
        "MB": f"{tally.bytes / 1e6:.1f}",
    }
    for name, counts in _distributions(tally).items():
        numbers = summary(counts)
        cells[f"{name.replace('_', ' ')} min/median/p95/max"] = "/".join(
            f"{numbers[part]:g}" for part in ("min", "median", "p95", "max")
        )
    if tally.codecs:
        cells["codecs"] = ", ".join(f"{name} x{count}" for name, count in tally.codecs.most_common())
    if colour := _colour(tally):
        cells["mean colour"] = "#" + "".join(f"{round(part):02x}" for part in colour)
    return cells


def _distributions(tally: Tally) -> dict[str, Counter[Any]]:
    widths: Counter[int] = Counter()
    heights: Counter[int] = Counter()
    for (width, height), count in tally.sizes.items():
        widths[width] += count
        heights[height] += count
    found: dict[str, Counter[Any]] = {
        "width": widths,
        "height": heights,
        "seconds": tally.seconds,
        "frames": tally.frames,
        "fps": tally.fps,
        "texts_per_sample": tally.captions,
        "words_per_text": tally.words,
        "tokens_per_text": tally.tokens,
    }
    return {name: counts for name, counts in found.items() if counts}


def _longest(tally: Tally) -> list[tuple[int, int, str]]:
    return heapq.nlargest(LONGEST, tally.longest)


def _colour(tally: Tally) -> list[float]:
    """Mean red, green and blue, 0 to 255; empty without pixels."""
    *sums, count = tally.colour.tolist()
    return [round(part / count, 2) for part in sums] if count else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
