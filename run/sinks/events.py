"""events.jsonl: what happened to a run, a line each. Unlike records nothing is taken back on resume, as that is an event too."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Literal

from parallel.health.claim import FolderError
from run.sinks.json_lines import write_line

Kind = Literal["start", "resume", "skipped", "alarm", "note", "stop", "diverged", "end"]
"""note: a save, an evaluation, a new best figure."""


class Events:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"

    def write(self, kind: Kind, step: int, text: str, **details: Any) -> None:
        """step: finished steps; details: more of it, for a start. Raises FolderError."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                write_line(file, {"time": now, "step": step, "kind": kind, "text": text, **details})
        except OSError as error:
            raise FolderError(f"{self.path}: {error.strerror}") from error
