"""What a rank tells the others without a collective: one small JSON file a rank, in a folder that all ranks see.

A note that cannot be written or read is left out: notes help to understand a run and must never stop one.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

Note = dict[str, Any]


class Notes:
    """The notes of one start of a run; `start` is the same word on all its ranks and on none of another start."""

    def __init__(self, folder: Path, start: str, rank: int) -> None:
        self.folder, self.start, self.rank = folder, start, rank

    def path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank:05d}.json"

    def write(self, note: Note) -> bool:
        """Replace this rank's note; a reader sees the old one or the new one. False if it could not be written."""
        path = self.path(self.rank)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not synced to disk as checkpoints are: a note is of use to running ranks alone.
            temporary.write_text(
                json.dumps({"rank": self.rank, "start": self.start} | note, indent=1) + "\n", encoding="utf-8"
            )
            os.replace(temporary, path)
        except OSError:
            return False
        return True

    def ranks(self) -> set[int]:
        """Whose notes are there, without opening them."""
        with contextlib.suppress(OSError):
            names = os.listdir(self.folder)
            return {int(n[5:10]) for n in names if n.startswith("rank_") and n.endswith(".json") and n[5:10].isdigit()}
        return set()

    def read(self) -> dict[int, Note]:
        """The notes of this start by rank."""
        notes: dict[int, Note] = {}
        for rank in sorted(self.ranks()):
            with contextlib.suppress(OSError, ValueError):
                note = json.loads(self.path(rank).read_text(encoding="utf-8"))
                if note["start"] == self.start:
                    notes[rank] = note
        return notes

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path(self.rank).unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Also those of earlier starts."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*rank_*"):
                path.unlink(missing_ok=True)
