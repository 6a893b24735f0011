"""metrics.jsonl: a record per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from data.json_numbers import with_null
from parallel.checkpoints import write_atomically
from parallel.health.claim import FolderError
from run.metrics.meter import Record


class JsonLines:
    """metrics.jsonl; on resume, records after the checkpoint's step are dropped so that each step stands once."""

    def __init__(self, path: Path, start_step: int) -> None:
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= start_step]
            write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: Record) -> None:
        write_line(self._file, record)

    def close(self) -> None:
        self._file.close()


def write_line(file: IO[str], record: Record) -> None:
    """Raises FolderError."""
    try:
        file.write(json_line(record) + "\n")
    except OSError as error:
        raise FolderError(
            f"{file.name}: {error.strerror}; the same command resumes from the newest checkpoint"
        ) from error


def json_line(record: Record) -> str:
    return json.dumps(with_null(record), allow_nan=False)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash
