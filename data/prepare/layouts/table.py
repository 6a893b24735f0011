"""Tables of anyone's making: a column of files, and captions or a class of each."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data.prepare.annotations import check_name
from data.prepare.containers import Container, Limits, open_container
from data.prepare.layout import (
    PLACE,
    Command,
    displayed,
    given_splits,
    name_map_argument,
    reduction_arguments,
    reduction_of,
    split_arguments,
)
from data.prepare.layouts.captions import captioned
from data.prepare.layouts.images import read_classes
from data.prepare.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Entry, Medium, is_medium, media_splits
from data.prepare.source import Context, Failure, PublicSet
from data.prepare.tables import check_suffix, columns_of, table
from data.shards import DatasetError

FILES = ("filepath", "file_path", "file_name", "filename", "file", "image_path", "image", "video_path", "video", "path")
CAPTIONS = ("caption", "captions", "title", "text")
CLASSES = ("label", "class", "class_name", "category")
"""Names of columns that are looked for, the first one found is taken; letter case does not count."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Either captions or a label."""

    file: str
    captions: tuple[str, ...] = ()
    label: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        return self.file, *self.captions, *([self.label] if self.label is not None else [])


def _arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("TABLE",))
    text = "what names of files are relative to (default: the table's folder)"
    command.add_argument("--root", type=Path, metavar=PLACE, help=text)
    text = "column of names of images or clips"
    command.add_argument("--file-column", metavar="NAME", help=f"{text} (default: {', '.join(FILES)})")
    text = "column of captions; may be given several times"
    command.add_argument(
        "--caption-column", metavar="NAME", action="append", help=f"{text} (default: {', '.join(CAPTIONS)})"
    )
    command.add_argument(
        "--class-column",
        metavar="NAME",
        help=f"column of classes, in place of captions (default: {', '.join(CLASSES)})",
    )
    command.add_argument("--classes", type=Path, metavar="JSON", help="list of classes in order (default: sorted)")
    name_map_argument(command)
    reduction_arguments(command, "image")
    command.add_argument("--fps", type=float, metavar="N", help="reduce faster clips to N frames per second")


def table_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    given = {split: path for split, (path,) in given_splits(arguments).items()}
    columns = {split: find_columns(path, arguments, context.limits) for split, path in given.items()}
    first, *others = columns.values()
    if any(bool(other.captions) != bool(first.captions) for other in others):
        raise DatasetError(
            "one table has captions, another classes: name the column by --caption-column or --class-column"
        )
    opened: dict[Path, Container] = {}
    files: dict[str, dict[str, list[str]]] = {}
    containers: dict[str, Container] = {}
    failures: dict[str, list[Failure]] = {}
    for split, path in given.items():
        root = (arguments.root or path.parent).absolute()
        if root not in opened:
            opened[root] = open_container(root, context.limits, context.scratch)
        containers[split] = opened[root]
        _tell(path, columns[split])
        files[split], failures[split] = read_files(path, columns[split], root, context)
    medium = medium_of(name for names in files.values() for name in names)
    if medium == "image" and arguments.fps is not None:
        raise DatasetError("--fps is for clips, and the table has images")
    strange = {split: dict(container.strange) for split, container in containers.items()}
    entries: dict[str, list[Entry]] = {}
    for split, texts in files.items():
        for name in [name for name in texts if name in strange[split] or not is_medium(name, medium)]:
            failures[split].append(Failure(name, strange[split].get(name, f"no {medium}")))
            del texts[name]
    if first.captions:
        for split, texts in files.items():
            entries[split], missing, _ = captioned(containers[split], texts, given[split].name)
            failures[split] += missing
        return PublicSet(f"{medium}_caption", (), media_splits(medium, entries, failures, reduction, context))
    classes = _classes(arguments, files, context)
    for split, labels in files.items():
        entries[split], outside = _labelled(given[split], containers[split], labels, classes)
        failures[split] += outside
    splits = media_splits(medium, entries, failures, reduction, context)
    return PublicSet(f"{medium}_class", displayed(classes, arguments.name_map), splits)


# -------------------------------------------------------------------------------------------------------- columns


def find_columns(path: Path, arguments: argparse.Namespace, limits: Limits) -> Columns:
    """Those that were asked for, or else those with usual names. Raises DatasetError."""
    check_suffix(path)
    names = columns_of(path, limits)
    asked: list[str] = [
        name
        for name in (arguments.file_column, *(arguments.caption_column or ()), arguments.class_column)
        if name is not None
    ]
    found = f"the columns are {', '.join(names)[:300]}"
    unknown = next((name for name in asked if name not in names), None)
    if unknown is not None:
        raise DatasetError(f"{path}: no column {unknown!r}; {found}")
    if arguments.caption_column and arguments.class_column:
        raise DatasetError("--caption-column and --class-column: give one of them, a sample has captions or a class")
    file = arguments.file_column or _usual(names, FILES)
    if file is None:
        raise DatasetError(f"{path}: which column names the files? Say it with --file-column; {found}")
    others = [name for name in names if name != file]
    captions = tuple(dict.fromkeys(arguments.caption_column or ()))
    label = arguments.class_column
    if not captions and label is None:
        captions, label = _usual_captions(others), _usual(others, CLASSES)
        if captions and label is not None:
            raise DatasetError(
                f"{path}: has captions ({', '.join(captions)}) and classes ({label}): say --caption-column or --class-column"
            )
        if not captions and label is None:
            raise DatasetError(f"{path}: no captions or classes: say --caption-column or --class-column; {found}")
    return Columns(file, captions, label)


def _usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[name] for name in usual if name in by_name), None)


def _usual_captions(names: Sequence[str]) -> tuple[str, ...]:
    """The one of a usual name, and those of that name with a number: caption, or caption_1 and caption_2."""
    for usual in CAPTIONS:
        found = tuple(name for name in names if re.fullmatch(rf"{usual}([ _]?\d+)?", name.lower()))
        if found:
            return found
    return ()


def _tell(path: Path, columns: Columns) -> None:
    others = f"captions in {', '.join(columns.captions)}" if columns.captions else f"classes in {columns.label}"
    print(f"{path}: files in column {columns.file}, {others}")


# ----------------------------------------------------------------------------------------------------------- rows


def read_files(
    path: Path, columns: Columns, root: Path, context: Context
) -> tuple[dict[str, list[str]], list[Failure]]:
    """(file below the root -> its captions or classes, rows that name none). Raises DatasetError."""
    files: dict[str, list[str]] = {}
    failures = []
    for place, cells in table(path, context.limits, columns.all):
        name = cells[columns.file]
        if name is None or (isinstance(name, str) and not name.strip()):
            failures.append(Failure(place, "names no file"))
            continue
        if not isinstance(name, str):
            kind = type(name).__name__
            raise DatasetError(f"{path}: {place}: column {columns.file!r} has {kind} in place of a name of a file")
        texts = files.setdefault(_below(path, name.strip(), root), [])
        for column in columns.all[1:]:
            texts += _texts(cells[column])
    return files, failures


def _below(path: Path, name: str, root: Path) -> str:
    """The name relative to the root. Raises DatasetError for one that leads out of it."""
    if re.match(r"\w+://", name):
        raise DatasetError(f"{path}: {name[:80]!r} is no file: fetch the files first, img2dataset does it for images")
    if os.path.isabs(name):
        try:
            name = str(PurePosixPath(name).relative_to(root))
        except ValueError as error:
            raise DatasetError(f"{path}: {name[:80]!r} is not below {root}: give its folder by --root") from error
    return str(PurePosixPath(check_name(path, name)))


def _texts(cell: Any) -> Iterator[str]:
    """Parquet has lists of captions, numbers and empty cells, too."""
    for value in cell if isinstance(cell, list) else [cell]:
        if value is not None and str(value).strip():
            yield str(value).strip()


def medium_of(names: Iterator[str]) -> Medium:
    """Raises DatasetError unless all files that can be read are of one kind."""
    found: dict[Medium, str] = {}
    for name in names:
        for medium in ("image", "video"):
            if is_medium(name, medium):
                found.setdefault(medium, name)
    if not found:
        raise DatasetError(f"the tables name no image or clip: {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}")
    if len(found) > 1:
        raise DatasetError(
            f"the tables name images ({found['image']}) and clips ({found['video']}): make a data set of each"
        )
    return next(iter(found))


# -------------------------------------------------------------------------------------------------------- classes


def _classes(
    arguments: argparse.Namespace, files: dict[str, dict[str, list[str]]], context: Context
) -> tuple[str, ...]:
    """Raises DatasetError if train lacks a class of another split and no list tells all of them."""
    for labels in files.values():
        for name, found in labels.items():
            labels[name] = list(dict.fromkeys(unicodedata.normalize("NFC", label) for label in found))
    if arguments.classes:
        classes = read_classes(arguments.classes, context.limits)
        for labels in files.values():  # numbers stand for places in the list, unless they are names in it
            for name, found in labels.items():
                labels[name] = [_of_number(label, classes) for label in found]
        return classes
    by_split = {split: {label for found in labels.values() for label in found} for split, labels in files.items()}
    first = next(iter(by_split))  # train, if it is there
    for split, names in by_split.items():
        unknown = sorted(names - by_split[first])
        if unknown:
            raise DatasetError(
                f"{getattr(arguments, split)[0]}: {split} has class {unknown[0]!r}, which {first} has not: say all classes with --classes"
            )
    numbers = all(re.fullmatch(r"[0-9]{1,9}", label) for label in by_split[first])
    return tuple(sorted(by_split[first], key=int if numbers else None))


def _of_number(label: str, classes: tuple[str, ...]) -> str:
    is_place = label not in classes and re.fullmatch(r"[0-9]{1,9}", label) and int(label) < len(classes)
    return classes[int(label)] if is_place else label


def _labelled(
    path: Path, container: Container, labels: dict[str, list[str]], classes: tuple[str, ...]
) -> tuple[list[Entry], list[Failure]]:
    numbers = {name: number for number, name in enumerate(classes)}
    found: dict[str, int] = {}
    failures = []
    for name, (*others, label) in ((name, found or [""]) for name, found in labels.items()):
        blob = container.find(name)
        if blob is None:
            failures.append(Failure(name, f"not in {container.path.name}"))
        elif not label:
            failures.append(Failure(name, f"no class in {path.name}"))
        elif label not in numbers:
            failures.append(Failure(name, "its class is not in the list of classes"))
        elif others or found.setdefault(blob.name, numbers[label]) != numbers[label]:
            other = others[0] if others else classes[found[blob.name]]
            raise DatasetError(f"{path}: {name} has two classes, {other!r} and {label!r}")
    entries = [Entry(name, blob, {"cls": found[name]}) for name, blob in container.blobs.items() if name in found]
    return entries, failures


LAYOUTS = (
    Command(
        "table",
        "tables of files with captions or classes to image_caption, video_caption, image_class or video_class",
        "A table (.csv, .tsv, .parquet) with a line of column names: one column of images or clips, and one or more of captions or "
        "one of classes. Several rows of one file are several captions of it. Columns of usual names are found, and told.",
        "table --train train.csv --val val.csv --root images --caption-column title --out datasets/captions",
        _arguments,
        table_source,
    ),
)
