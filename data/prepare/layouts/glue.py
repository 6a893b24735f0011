"""GLUE's tasks, from the TSV files as they are distributed, to text_class."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path

from data.prepare.annotations import text_lines
from data.prepare.containers import Limits
from data.prepare.layout import Command, displayed, name_map_argument
from data.prepare.source import Context, Failure, Item, PublicSet, split_of, take_val
from data.shards import DatasetError
from data.text.words import has_word


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """texts and label are columns by name, or by number where the file names none; labels as written -> class. metrics: in which the task
    is reported besides accuracy. is_score: the label is a number, whose nearest class is the sample's."""

    texts: tuple[str, ...] | tuple[int, ...]
    label: str | int
    labels: dict[str, str]
    val_files: dict[str, str] = dataclasses.field(default_factory=lambda: {"val": "dev"})
    metrics: tuple[str, ...] = ()
    is_score: bool = False


_NO_YES = {"0": "no", "1": "yes"}
_ENTAILMENT = {"not_entailment": "no", "entailment": "yes"}
TASKS = {
    "sst2": GlueTask(("sentence",), "label", {"0": "terrible", "1": "great"}),
    "cola": GlueTask((3,), 1, {"0": "incorrect", "1": "correct"}, metrics=("matthews",)),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", _NO_YES, metrics=("f1",)),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", _NO_YES, metrics=("f1",)),
    "stsb": GlueTask(
        ("sentence1", "sentence2"),
        "score",
        {str(number): word for number, word in enumerate(("zero", "one", "two", "three", "four", "five"))},
        metrics=("pearson", "spearman"),
        is_score=True,
    ),
    "qnli": GlueTask(("question", "sentence"), "label", _ENTAILMENT),
    "rte": GlueTask(("sentence1", "sentence2"), "label", _ENTAILMENT),
    "mnli": GlueTask(
        ("sentence1", "sentence2"),
        "gold_label",
        {"contradiction": "no", "neutral": "maybe", "entailment": "yes"},
        {"val": "dev_matched", "val_mismatched": "dev_mismatched"},
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    name: str
    parts: tuple[str, ...]
    label: int
    score: float | None = None


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--task", choices=sorted(TASKS), required=True, help="which task's columns and classes")
    text = "train.tsv and dev.tsv (mnli: dev_matched.tsv and dev_mismatched.tsv), or .tsv.gz"
    command.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help=text)
    text = "how two texts become one (default '{first} | {second}')"
    command.add_argument("--pair", default="{first} | {second}", metavar="TEMPLATE", help=text)
    name_map_argument(command)


def glue_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    task: GlueTask = TASKS[arguments.task]
    if arguments.pair.count("{first}") != 1 or arguments.pair.count("{second}") != 1:
        raise DatasetError(f"--pair {arguments.pair!r}: needs {{first}} and {{second}}, each once")
    files = {"train": "train"} | ({} if context.val_fraction else task.val_files)
    classes = tuple(task.labels.values())
    entries: dict[str, list[Row]] = {}
    failures: dict[str, list[Failure]] = {}
    for split, stem in files.items():
        entries[split], failures[split] = [], []
        for found in read_rows(_file(arguments.folder, stem), task, context.limits):
            (entries[split] if isinstance(found, Row) else failures[split]).append(found)  # type: ignore[arg-type]
    take_val(entries, failures, lambda row: row.name, context)
    make = functools.partial(_item, arguments.pair)
    splits = {
        split: split_of(rows, make, lambda row: row.name, failures[split], context) for split, rows in entries.items()
    }
    return PublicSet("text_class", displayed(classes, arguments.name_map), splits, metrics=task.metrics)


def _file(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.tsv", folder / f"{stem}.tsv.gz"):
        if path.is_file():
            return path
    raise DatasetError(f"{folder}: no {stem}.tsv or {stem}.tsv.gz")


def read_rows(path: Path, task: GlueTask, limits: Limits) -> Iterator[Row | Failure]:
    """Rows of the file, in which quotation marks mean nothing. Raises DatasetError for other columns."""
    lines = text_lines(path, limits.annotations)
    wanted: list[int] = [column for column in (*task.texts, task.label) if isinstance(column, int)]
    if not wanted:
        header = next(lines, "").split("\t")
        missing = [column for column in (*task.texts, task.label) if column not in header]
        if missing:
            raise DatasetError(f"{path}: no column {missing[0]!r} in the first line, found {', '.join(header)[:300]}")
        wanted = [header.index(str(column)) for column in (*task.texts, task.label)]
    numbers = {written: number for number, written in enumerate(task.labels)}
    # The first part of the name is the file's: dev rows and train rows have the same numbers.
    for number, line in enumerate(lines, start=0 if isinstance(task.label, int) else 1):
        name = f"{path.name.split('.')[0]}_{number:07d}"
        cells = line.split("\t")
        if len(cells) <= max(wanted):
            yield Failure(name, f"{len(cells)} columns, need {max(wanted) + 1}")
            continue
        *parts, label = (cells[column].strip() for column in wanted)
        score = _score(label) if task.is_score else None
        label = label if score is None else str(math.floor(score + 0.5))
        if label not in numbers:
            yield Failure(name, f"label {label[:40]!r}, expected {', '.join(numbers)}")
        elif not all(map(has_word, parts)):
            yield Failure(name, "an empty text")
        else:
            yield Row(name, tuple(parts), numbers[label], score)


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if math.isfinite(score) else None


def _item(pair: str, row: Row) -> Item:
    if len(row.parts) == 1:
        return Item(row.name, {"txt": row.parts[0], "cls": row.label}, row.parts)
    first, second = row.parts
    # In one go: a text may hold "{second}" itself.
    before, between, after = _cut(pair)
    parts = {"{first}": first, "{second}": second}
    text = before + parts[between[0]] + between[1] + parts[between[2]] + after
    about = {"first": first, "second": second} | ({} if row.score is None else {"score": row.score})
    return Item(row.name, {"txt": text, "cls": row.label, "json": about}, (text,))


def _cut(pair: str) -> tuple[str, tuple[str, str, str], str]:
    """The template's text before, (first mark, text between, second mark), and text after."""
    marks = sorted(("{first}", "{second}"), key=pair.index)
    before, rest = pair.split(marks[0])
    between, after = rest.split(marks[1])
    return before, (marks[0], between, marks[1]), after


LAYOUTS = (
    Command(
        "glue",
        "SST-2, CoLA, MRPC, QQP, STS-B, QNLI, RTE or MNLI to text_class",
        "A task's folder of GLUE with train.tsv and dev.tsv. Two texts become one by --pair, and stand by themselves in the "
        "json member. Classes are label words: terrible and great, incorrect and correct, no (maybe) and yes, zero to five for the "
        "scores of STS-B, which json keeps; --name-map changes them. test.tsv has no labels and is not read.",
        "glue --task sst2 --folder GLUE/SST-2 --out datasets/sst2",
        _arguments,
        glue_source,
        shuffle=True,
    ),
)
