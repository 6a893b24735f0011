"""Results of an evaluation in the run's folder, and two of them side by side.

RUN/evaluations/SPLIT_step_00001000.json: {"version": 1, "split", "step", "results": [{"task", "kind", "digest", "asked", "options",
"figure", "floor", "metrics", "interval", "intervals", "details", "evidence", "samples", "seconds"}]}. digest: of the data; asked: of
labels, captions or answers, which the digest does not see change, where it is known; intervals: of other figures by name; evidence and
samples: see evaluation/intervals.py, so that differences can be judged later without the models. "task" is the name of a row: it says
which options were not the usual ones, so that ten samples of a task stand beside all of them and not in their place. What is not finite
is null.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data.json_numbers import with_null
from data.shards import DatasetError
from data.shards.info import Metric
from data.stream.source import Source
from evaluation.base import Evaluation, Result
from evaluation.intervals import difference, differences_of, interval, intervals_of
from parallel.checkpoints import write_atomically

FOLDER = "evaluations"
LOCK = ".lock"
VERSION = 1
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a file makes that nobody can understand."""
Row = dict[str, Any]


READ = {"max_text", "temperature", "template", "num_frames", "frame_sampling", "frame_stride"}
"""Options that say how a network reads samples. They belong to it, so networks that read the same ones otherwise are compared, and it is
said; of masked text they say which words are asked for."""
BEAM, TRIALS, BATCH_SIZE = 2, 5, 64
"""The usual numbers of hypotheses of what is written, of parts that a probe is fitted to, and of samples in a batch."""


def options_of(evaluation: Evaluation, templates: str = "none") -> dict[str, Any]:
    """Those that change the figures of a task of this kind, for one that is not probed; they have JSON's types. templates: by name, of a
    list of one's own by what it holds."""
    config, vocabulary = evaluation.source.task.config, evaluation.source.task.vocabulary
    options: dict[str, Any] = {"limit": evaluation.limit}
    if config.answer == "generate" or config.kind == "captioning":
        options |= {"beam": evaluation.beam, "length_penalty": evaluation.length_penalty}
    elif config.kind == "masked_text":  # which words are asked for, and which others they are compared with
        words = hashlib.sha256(repr(vocabulary.clip_ids).encode()).hexdigest()[:16]
        masks = {"mask_rate": config.mask_rate, "mask_shares": list(config.mask_shares), "max_text": config.max_text}
        options |= masks | {"vocabulary": words}
    elif config.kind in ("classification", "text_classification"):
        if templates.startswith("@"):
            templates = "@" + hashlib.sha256("\n".join(evaluation.templates).encode()).hexdigest()[:8]
        options |= {"templates": templates, "views": list(config.views)}
    options |= {} if config.answer == "rank" else {"answer": config.answer}
    frames = evaluation.source.task.context.frames
    return options | of_every_kind(evaluation) | ({} if frames == "as-is" else {"frames": frames})


def of_every_kind(evaluation: Evaluation) -> dict[str, Any]:
    """Options that change the figures of any kind of task."""
    return reading_of(evaluation) | batches_of(evaluation)


def reading_of(evaluation: Evaluation) -> dict[str, Any]:
    """How the network reads a sample, and the name of its logit scale. Rows of earlier versions do not say it."""
    task = evaluation.source.task
    names = ["max_text", "temperature"]
    names += ["template"] if task.config.kind in ("text_classification", "vqa") else []
    names += ["num_frames", "frame_sampling", "frame_stride"] if task.context.info.kind.startswith("video") else []
    return {name: getattr(task.config, name) for name in names}


def batches_of(evaluation: Evaluation) -> dict[str, int]:
    """How samples stand in batches, where it matters: where experts have a capacity, those of a batch compete for their places."""
    experts = evaluation.objective.config.experts
    trained, factor = experts.capacity_factor, experts.eval_capacity_factor
    matters = experts.placement != "none" and (trained if factor is None else factor)
    return {"batch_size": evaluation.batch_size, "ranks": evaluation.ranks.size} if matters else {}


def asked_of(evaluation: Evaluation) -> str:
    """Collective. A few characters that follow from what its samples have asked for, on any number of ranks; empty without samples."""
    total = sum(evaluation.of_all_ranks(sum(evaluation.asked.values())))
    return f"{total % (1 << 48):012x}" if total else ""


def unusual(options: Mapping[str, Any]) -> str:
    """What the name of a row says of its options."""
    limit, beam, penalty = options.get("limit"), options.get("beam", BEAM), options.get("length_penalty", 0.0)
    templates, weights = options.get("templates", "none"), options.get("weights", "final")
    trials, size, ranks = options.get("trials", TRIALS), options.get("batch_size", BATCH_SIZE), options.get("ranks", 1)
    parts = [
        f"{trials} trial{'s' if trials > 1 else ''}" if trials != TRIALS else "",
        f"{limit:,} samples at most" if limit else "",
        f"beam {beam}" if beam != BEAM else "",
        f"length penalty {penalty:g}" if penalty else "",
        f"{templates} sentences" if templates != "none" else "",
        "raw weights" if weights != "final" else "",
        f"batches of {size}" if size != BATCH_SIZE else "",
        f"{ranks} ranks" if ranks > 1 else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def row_of(
    source: Source,
    result: Result,
    options: Mapping[str, Any],
    figure: str,
    floor: str,
    seconds: float,
    name: str = "",
    asked: str = "",
) -> Row:
    """One task's result as it is kept. name: in place of the task's; asked: see `asked_of`."""
    ends_of = {other: ends for other, ends in intervals_of(result.samples).items() if other != figure}
    return {
        "task": (name or source.name) + unusual(options),
        "kind": source.task.config.kind,
        "digest": source.digest,
        "asked": asked,
        "options": dict(options),
        "figure": figure,
        "floor": floor,
        "metrics": result.metrics,
        "interval": list(interval(result.evidence_N2)),
        "intervals": {name: list(ends) for name, ends in (ends_of | result.intervals).items()},
        "details": result.details,
        "evidence": result.evidence_N2.tolist(),
        "samples": {name: values.tolist() for name, values in result.samples.items()},
        "seconds": seconds,
    }


def measured_of(row: Row) -> dict[str, Any]:
    """What figures must have in common to be compared: the data, what is asked of it, and the options."""
    return {"data": row["digest"], "asked": row["asked"], **row["options"]}


def line_of(row: Row, split: str, step: int) -> Row:
    """What is printed of it: one flat line, numbers rounded."""
    head = {"task": row["task"], "kind": row["kind"], "split": split, "step": step}
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in row["metrics"].items()}
    ends = {"interval": row["interval"]} | {f"{name}_interval": ends for name, ends in row["intervals"].items()}
    rounded_ends = {key: [round(value, 5) for value in pair] for key, pair in ends.items()}
    return {**head, **rounded, **rounded_ends, **{key: row[key] for key in ("figure", "floor", "seconds")}}


def keep(run: Path, split: str, step: int, rows: Sequence[Row]) -> None:
    """Writes the file; what it has of other rows stays, and a file that nobody can understand stays beside it as .damaged. Raises OSError,
    and DatasetError for a file of another version."""
    path = run / FOLDER / f"{split}_step_{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    with _only_writer(path.parent):
        known: dict[str, Row] = {}
        try:
            known = Kept.parsed(path).rows
            known = {_name_beside(row, rows): row for row in known.values()}
        except DatasetError:
            raise
        except FileNotFoundError:
            pass
        except UNREADABLE:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
        known |= {row["task"]: row for row in rows}
        results = [row | {"task": name} for name, row in known.items()]
        content = {"version": VERSION, "split": split, "step": step, "results": results}
        write_atomically(path, json.dumps(with_null(content), ensure_ascii=False, allow_nan=False) + "\n")


def _name_beside(row: Row, rows: Sequence[Row]) -> str:
    """Of a row that is there: where one of the same name follows that was made with other options, as where a suite has been edited, what
    these were is part of it."""
    new: Mapping[str, Any] = next((new["options"] for new in rows if new["task"] == row["task"]), {})
    return row["task"] + "".join(f", {key} {row['options'][key]}" for key in differing(row["options"], new))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of options that both have, with different values."""
    return [key for key in one if key in other and one[key] != other[key]]


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Waits for others who add rows to the files of the folder, as theirs would be lost. Raises OSError."""
    with (folder / LOCK).open("a", encoding="utf-8") as lock:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def table_of(rows: Sequence[Row]) -> str:
    """The main figures for people, and those besides in which the field reports a data set."""
    table = [("task", "figure", "value", "95 %", "n", "without learning", "seconds")]
    for row in rows:
        name, metrics, count = row["task"], row["metrics"], f"{len(row['evidence']):,}"
        floor, seconds = _number(metrics[row["floor"]]), f"{row['seconds']:.1f}"
        table.append(
            (name, row["figure"], f"{metrics[row['figure']]:.4f}", _ends(row["interval"]), count, floor, seconds)
        )
        named = [figure for figure in row["intervals"] if figure in get_args(Metric)]
        for figure in named:
            ends = row["intervals"][figure]
            table.append((name, figure, f"{metrics[figure]:.4f}", _ends(ends), count, "", ""))
    return _aligned(table)


def _number(value: float | None) -> str:
    return "none" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _ends(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.4f} to {high:.4f}"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


@dataclasses.dataclass(frozen=True)
class Kept:
    """An evaluation that was kept."""

    name: str
    split: str
    step: int
    rows: dict[str, Row]

    @classmethod
    def read(cls, place: Path, split: str, step: int | None = None) -> Kept:
        """Of a file, or of a run folder the split's evaluation of a step, by default the newest. Raises DatasetError."""
        path = place
        if place.is_dir():
            of_step = "" if step is None else f"{step:08d}"
            found = sorted((place / FOLDER).glob(f"{glob.escape(split)}_step_{of_step or '*'}.json"))
            if not found:
                at = "" if step is None else f" at step {step:,}"
                raise DatasetError(
                    f"{place} has no kept evaluation {split}{at}: `python evaluate.py --run {place}`, with the same --split, --suite or "
                    "--probe, makes one"
                )
            path = found[-1]
        try:
            kept = cls.parsed(path)
        except DatasetError:
            raise
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}") from error
        except UNREADABLE as error:
            raise DatasetError(f"{path}: not a kept evaluation ({type(error).__name__}: {error})") from error
        if step not in (None, kept.step):
            raise DatasetError(f"{path} is of step {kept.step:,}, not of {step:,}")
        return kept

    @classmethod
    def parsed(cls, path: Path) -> Kept:
        """Raises OSError, what is in UNREADABLE, and DatasetError for another version."""
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise DatasetError(
                f"{path}: not a kept evaluation of this program (version {content['version']!r}, expected {VERSION}): move it away, or use "
                "the program that wrote it"
            )
        rows = {row["task"]: row for row in content["results"]}
        return cls(path.parent.parent.name, content["split"], content["step"], rows)


def comparison(one: Kept, other: Kept, tasks: Sequence[str] = ()) -> str:
    """A table of the figures of the rows that both have, main ones first, with the middle 95 % of the differences; of all, or of these
    tasks. Other figures than main ones are those of which both files say what samples add. Raises DatasetError if none can be compared."""
    titles = (f"{one.name} step {one.step}", f"{other.name} step {other.step}")
    table = [("task", "figure", *titles, "difference", "95 % of it")]
    left_out, notes = [], []
    for task in {**one.rows, **other.rows}:
        if tasks and not any(task == name or task.startswith(f"{name}, ") for name in tasks):
            continue
        mine, theirs = one.rows.get(task), other.rows.get(task)
        if mine is None or theirs is None or mine["figure"] != theirs["figure"]:
            left_out.append(f"{task}: not in both")
            continue
        if mine["digest"] != theirs["digest"]:
            left_out.append(f"{task}: evaluated on different data")
            continue
        unlike = differing(mine["options"], theirs["options"])
        read = [key for key in unlike if key in READ and mine["kind"] != "masked_text"]
        if len(unlike) > len(read) or {*mine["options"]} - READ != {*theirs["options"]} - READ:
            left_out.append(f"{task}: evaluated with different options, {mine['options']} and {theirs['options']}")
            continue
        if mine.get("asked") and theirs.get("asked") and mine["asked"] != theirs["asked"]:
            left_out.append(f"{task}: evaluated on different data (other labels, captions or answers)")
            continue
        said = [f"{key} is {mine['options'][key]} and {theirs['options'][key]}" for key in read]
        notes += [f"{task}: {', '.join(said)}"] if said else []
        for figure, (value, low, high) in _differences(mine, theirs).items():
            own, others = (_number(row["metrics"][figure]) for row in (mine, theirs))
            table.append((task, figure, own, others, f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}"))
    if len(table) == 1:
        reason = "; ".join(left_out) or f"{one.name} has {', '.join(one.rows) or 'no results'}"
        raise DatasetError(f"nothing to compare; {reason}")
    return "\n".join([_aligned(table), *notes, *(f"left out: {reason}" for reason in left_out)])


def _differences(one: Row, other: Row) -> dict[str, tuple[float, float, float]]:
    """By figure, the main one first. Rows of earlier versions have evidence alone."""
    evidence = [np.array(row["evidence"], dtype=np.float64) for row in (one, other)]
    samples = [
        {name: np.array(values, dtype=np.float64) for name, values in row.get("samples", {}).items()}
        for row in (one, other)
    ]
    main = difference(evidence[0], evidence[1], paired=True)
    return {one["figure"]: main} | differences_of(samples[0], samples[1]) | {one["figure"]: main}
