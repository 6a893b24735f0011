"""train.py that appends `STEP PHASE` to FAULT_TRACE/RANK at each phase, so that a fault can be put where it is wanted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from parallel.health.watchdog import Watchdog
from parallel.launch import launched_rank
from run.streams import keep_printing


def tell_phases(path: Path) -> None:
    original = Watchdog.phase
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def phase(self: Watchdog, name: str, step: int | None = None) -> None:
        original(self, name, step)
        os.write(file, f"{self.place.step} {name}\n".encode())

    Watchdog.phase = phase  # type: ignore[method-assign]


if __name__ == "__main__":
    keep_printing()
    tell_phases(Path(os.environ["FAULT_TRACE"]) / str(launched_rank()))
    sys.exit(train.main())
