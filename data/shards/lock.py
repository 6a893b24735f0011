"""One writer per data set folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from data.shards.errors import DatasetError

LOCK_FILE = ".writing"


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it while the block runs. The system lets go of it when the process ends, however that happens.

    Raises DatasetError if another process writes there.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except BlockingIOError as error:
        raise DatasetError(
            f"{folder} is being written by {_content(path)}: wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # first: who opens it after this makes a new one
        os.close(lock)


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, locked. Raises BlockingIOError where another process has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(
                os.fstat(lock), path.stat()
            ):  # not one that its owner has just removed
                os.ftruncate(lock, 0)
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:200] or "another process"
    except (OSError, ValueError):
        return "another process"
