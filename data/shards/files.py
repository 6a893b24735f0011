"""Names of the files of a data set folder, and how they are replaced and removed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from data.shards.errors import DatasetError

INFO_FILE = "dataset.json"
_SPLIT = re.compile(r"[A-Za-z0-9_]+")
_OURS = re.compile(
    r"[A-Za-z0-9_]+-\d{6}\.tar(\.index\.json)?|[A-Za-z0-9_]+\.shards\.json|dataset\.json|summary\.json|\.[\w.-]+\.tmp"
)


def check_split(split: str) -> None:
    """Raises DatasetError unless the name can be part of a file name."""
    if not is_split(split):
        raise DatasetError(f"split {split!r}: use letters, digits and _")


def is_split(name: str) -> bool:
    return bool(_SPLIT.fullmatch(name))


def index_path(path: Path) -> Path:
    """The index of the shard `path`."""
    return path.with_name(path.name + ".index.json")


def list_name(split: str) -> str:
    """The file that lists the shards of a split."""
    return f"{split}.shards.json"


def open_plain(path: Path) -> io.FileIO:
    """For reading, without a buffer. Raises OSError, also for what is no plain file: a pipe would be waited for without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return io.FileIO(path)


def check_replaceable(path: Path) -> None:
    """Raises OSError for what is no plain file, as a pipe, /dev/null, or /dev/stdout wherever that leads: a file would take its place."""
    folder = f"{os.path.realpath(path.parent)}/"
    is_stream = folder == "/dev/" or folder.startswith("/proc/")
    if is_stream or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "is no plain file, and one would take its place: name another", str(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that takes the name `path` when the block ends well, and vanishes otherwise. Several processes may do it at once. Raises
    OSError."""
    check_replaceable(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def clear_dataset(directory: Path, keep: Collection[str] = ()) -> None:
    """Make the folder, or remove an earlier data set from it, save files to keep. Raises DatasetError for any other content."""
    directory.mkdir(parents=True, exist_ok=True)
    # dataset.json first: a folder without it counts as incomplete
    entries = sorted(directory.iterdir(), key=lambda path: path.name != INFO_FILE)
    strange = [path.name for path in entries if not _OURS.fullmatch(path.name)]
    if strange:
        raise DatasetError(f"{directory} holds {strange[0]!r}, which is not of a data set: choose another folder")
    for path in entries:
        if path.name not in keep:
            path.unlink()
