"""One writer per data set folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from data.shards.errors import DatasetError


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it while the block runs. The system lets go of it when the process ends, however that happens.

    Raises DatasetError if another process writes there, or if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"{folder}: another process is writing it: wait, or end that one") from error
        except OSError:
            pass  # NFS and others lock no folders
        yield
    finally:
        os.close(lock)
