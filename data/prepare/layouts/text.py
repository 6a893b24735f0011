"""Plain text: passages, lines or documents of files and folders."""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data.prepare.annotations import text_lines
from data.prepare.containers import Limits, open_container
from data.prepare.layout import Command
from data.prepare.passages import is_val, passages
from data.prepare.source import Context, Failure, Item, PublicSet, ShardJob, SplitJobs, is_held_out
from data.shards import DatasetError

BLOCK = 50
"""Passages that stay together when val is taken out, so that only few neighbours stand in both splits."""
MAX_DOCUMENT_BYTES = 1 << 20  # what training reads at most

UNITS = ("passage", "line", "document")
_SUFFIXES = (".txt", ".txt.gz", ".gz")


def _arguments(command: argparse.ArgumentParser) -> None:
    text = "files, or folders of .txt and .txt.gz"
    command.add_argument(
        "--input", type=Path, nargs="+", action="extend", required=True, metavar="TXT|FOLDER", help=text
    )
    text = "a sample is a passage of sentences (default), a line, or a whole file"
    command.add_argument("--unit", choices=UNITS, default="passage", help=text)
    command.add_argument("--words", type=int, default=20, help="words of a passage (default 20)")


def text_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    if arguments.words < 2:
        raise DatasetError(f"--words {arguments.words}: must be at least 2")
    files: list[tuple[str, Path]] = []
    failures: list[Failure] = []
    for path in arguments.input:
        found, strange = _files(path, context.limits)
        files, failures = files + found, failures + strange
    texts = functools.partial(_texts, files, arguments.unit, arguments.words, context)
    # Read once more than needed, so that the progress bar knows the end.
    counts = collections.Counter(is_val for is_val, _, _ in texts())
    _check_counts(counts[False], counts[True], arguments.unit, context.val_fraction)
    splits = {"train": _split(texts, False, counts[False], context.shard_size, failures)}
    if context.val_fraction:
        splits["val"] = _split(texts, True, counts[True], context.shard_size)
    return PublicSet("text", (), splits)


def _check_counts(train: int, val: int, unit: str, fraction: float) -> None:
    """Raises DatasetError if a split would stay empty, before any of it is made."""
    if not train + val:
        raise DatasetError(f"--input: there is no {unit} in it")
    if fraction and not (train and val):
        empty, other = ("train", "smaller") if val else ("val", "larger")
        blocks = "" if unit == "document" else f" (in blocks of {BLOCK})"
        raise DatasetError(
            f"--val-fraction {fraction:g} of {train + val} {unit}s{blocks} leaves {empty} empty: give a {other} one or more "
            "text, or --val-fraction 0 for train alone"
        )


def _files(path: Path, limits: Limits) -> tuple[list[tuple[str, Path]], list[Failure]]:
    """(name for keys, file) of a file, or of all texts of a folder. Raises DatasetError."""
    if not path.is_dir():
        return [(path.name, path)], []
    container = open_container(path, limits, None)
    names = [name for name in container.blobs if name.endswith(_SUFFIXES)]
    if not names:
        raise DatasetError(f"{path}: no file .txt or .txt.gz")
    return [(name, path / name) for name in names], [Failure(name, reason) for name, reason in container.strange]


def _texts(
    files: list[tuple[str, Path]], unit: str, words: int, context: Context
) -> Iterator[tuple[bool, str, str | None]]:
    """(whether it is val, name, text or None for one that is too long).

    Val is every so many'th block of passages or lines, counted through all files, of which many may be smaller than a block;
    documents are chosen by their names.
    """
    total = itertools.count()
    for name, path in files:
        stem = name.split(".")[0]
        lines = text_lines(path, context.limits.archive)
        if unit == "document":
            yield is_held_out(name, context.val_fraction), stem, _whole(lines)
            continue
        parts = passages(lines, words) if unit == "passage" else (line.strip() for line in lines if line.strip())
        for index, part in enumerate(parts):
            yield is_val(next(total) // BLOCK, context.val_fraction), f"{stem}_{index:07d}", part


def _whole(lines: Iterator[str]) -> str | None:
    """The document; None if it is too long."""
    kept, size = [], 0
    for line in lines:
        kept.append(line)
        size += len(line.encode()) + 1
        if size > MAX_DOCUMENT_BYTES:
            return None
    return "\n".join(kept).strip()


def _split(
    texts: Callable[[], Iterator[tuple[bool, str, str | None]]],
    val: bool,
    size: int,
    shard_size: int,
    failures: Sequence[Failure] = (),
) -> SplitJobs:
    def jobs() -> Iterator[ShardJob]:
        wanted = ((name, text) for is_val, name, text in texts() if is_val == val)
        for first in range(0, size, shard_size):
            part = list(itertools.islice(wanted, shard_size))
            yield ShardJob(functools.partial(_items, part), first, len(part))

    return SplitJobs(jobs, size, tuple(failures))


def _items(part: list[tuple[str, str | None]]) -> Iterator[Item | Failure]:
    for name, text in part:
        if text is None or len(text.encode()) > MAX_DOCUMENT_BYTES:
            yield Failure(name, f"text of more than {MAX_DOCUMENT_BYTES} bytes: use --unit passage")
        elif not text:
            yield Failure(name, "the text is empty")
        else:
            yield Item(name, {"txt": text}, (text,))


LAYOUTS = (
    Command(
        "text",
        "books, Wikipedia and other plain text to text",
        "Files .txt or .txt.gz, or folders of them: running text cut at sentences into passages (--unit passage), one sample a "
        "line (--unit line) or a file (--unit document). WikiText's marks are undone in passages.",
        "text --input wiki.txt.gz books --words 20 --out datasets/wiki",
        _arguments,
        text_source,
    ),
)
