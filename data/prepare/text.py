"""Plain text: passages, lines or documents of files and folders."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from data.prepare.annotations import text_lines
from data.prepare.containers import Limits, open_container
from data.prepare.layout import Layout
from data.prepare.passages import is_val, passages
from data.prepare.source import Context, Failure, Item, Job, Source, Split, is_held_out
from data.shards import DatasetError

BLOCK = 50
"""Passages that stay together when val is taken out, so that only few neighbours stand in both splits."""
MAX_DOCUMENT_BYTES = 1 << 20  # what training reads at most

UNITS = ("passage", "line", "document")
_SUFFIXES = (".txt", ".txt.gz", ".gz")


def _arguments(command: argparse.ArgumentParser) -> None:
    text = "files, or folders of .txt and .txt.gz"
    command.add_argument("--input", type=Path, nargs="+", required=True, metavar="TXT|FOLDER", help=text)
    text = "a sample is a passage of sentences (default), a line, or a whole file"
    command.add_argument("--unit", choices=UNITS, default="passage", help=text)
    command.add_argument("--words", type=int, default=20, help="words of a passage (default 20)")


def text_source(arguments: argparse.Namespace, context: Context) -> Source:
    if arguments.words < 2:
        raise DatasetError(f"--words {arguments.words}: must be at least 2")
    files = [file for path in arguments.input for file in _files(path, context.limits)]
    samples = functools.partial(_samples, files, arguments.unit, arguments.words, context)
    splits = {"train": _split(functools.partial(samples, False), context.shard_size)}
    if context.val_fraction:
        splits["val"] = _split(functools.partial(samples, True), context.shard_size)
    return Source("text", (), splits)


def _files(path: Path, limits: Limits) -> list[tuple[str, Path]]:
    """(name for keys, file) of a file, or of all texts of a folder. Raises DatasetError."""
    if not path.is_dir():
        return [(path.name, path)]
    container = open_container(path, limits, None)
    if container.strange:
        name, reason = container.strange[0]
        raise DatasetError(f"{path}: {name} {reason}")
    names = [name for name in container.blobs if name.endswith(_SUFFIXES)]
    if not names:
        raise DatasetError(f"{path}: no file .txt or .txt.gz")
    return [(name, path / name) for name in names]


def _samples(
    files: list[tuple[str, Path]], unit: str, words: int, context: Context, val: bool
) -> Iterator[tuple[str, str]]:
    """(name, text) of one split: val is every so many'th block of passages or lines, or documents by their names."""
    for name, path in files:
        stem = name.split(".")[0]
        lines = text_lines(path, context.limits.archive)
        if unit == "document":
            if is_held_out(name, context.val_fraction) == val:
                yield stem, _whole(lines)
            continue
        parts = passages(lines, words) if unit == "passage" else (line.strip() for line in lines if line.strip())
        for index, part in enumerate(parts):
            if is_val(index // BLOCK, context.val_fraction) == val:
                yield f"{stem}_{index:07d}", part


def _whole(lines: Iterator[str]) -> str:
    """The document, or as much of it as makes clear that it is too long."""
    kept, size = [], 0
    for line in lines:
        kept.append(line)
        size += len(line) + 1
        if size > MAX_DOCUMENT_BYTES:
            break
    return "\n".join(kept).strip()


def _split(samples: Callable[[], Iterator[tuple[str, str]]], shard_size: int) -> Split:
    def jobs() -> Iterator[Job]:
        texts = samples()
        for first in itertools.count(0, shard_size):
            part = list(itertools.islice(texts, shard_size))
            if not part:
                return
            yield Job(functools.partial(_items, part), first, len(part))

    # Read once more than needed, so that the progress bar knows the end.
    return Split(jobs, sum(1 for _ in samples()))


def _items(part: list[tuple[str, str]]) -> Iterator[Item | Failure]:
    for name, text in part:
        size = len(text.encode(errors="replace"))
        if not text or size > MAX_DOCUMENT_BYTES:
            yield Failure(
                name, f"text of more than {MAX_DOCUMENT_BYTES} bytes: use --unit passage" if text else "empty"
            )
        else:
            yield Item(name, {"txt": text}, (text,))


LAYOUTS = (
    Layout(
        "text",
        "books, Wikipedia and other plain text to text",
        "Files .txt or .txt.gz, or folders of them: running text cut at sentences into passages (--unit passage), one sample a "
        "line (--unit line) or a file (--unit document). WikiText's marks are undone in passages.",
        "text --input wiki.txt.gz books --words 20 --out datasets/wiki",
        _arguments,
        text_source,
    ),
)
