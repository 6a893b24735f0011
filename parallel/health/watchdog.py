"""Where every rank is, and who waits for whom when nothing moves.

health/ rank_00003.json         where rank 3 is: phase, step, since when; rewritten every few seconds, removed at a clean end
        stacks_rank_00003.txt   the Python stacks of rank 3 when its phase lasted longer than parallel.stall_s
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from parallel.health.notes import Note, Notes

TICK_S = 1.0
HEARTBEAT_S = 5.0
SILENT_S = 6 * HEARTBEAT_S
"""A rank whose note is older has no running watchdog: its process or machine stands still, or is gone."""


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """What a rank does: a phase of a step, counted as the progress line counts (the first is 1), since a monotonic time."""

    phase: str
    step: int
    since: float

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self.since


class Watchdog:
    """A thread that writes this rank's note and reports a stall once. Nothing it does raises into the training."""

    def __init__(self, notes: Notes, stall_s: float, on_tick: Callable[[], None] = lambda: None) -> None:
        self.notes, self.stall_s = notes, stall_s
        self.place = Whereabouts("start", 0, time.monotonic())
        self._on_tick = on_tick
        self._reported: Whereabouts | None = None
        self._beat = -HEARTBEAT_S
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def phase(self, name: str, step: int | None = None) -> None:
        """Say what this rank does from now on; without a step, in the step of the last call."""
        self.place = Whereabouts(name, self.place.step if step is None else step, time.monotonic())

    def start(self) -> None:
        self._write()
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the note: this rank has left on its own account."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * TICK_S)
        self.notes.remove()

    def _watch(self) -> None:
        while not self._closed.wait(TICK_S):
            with contextlib.suppress(Exception):
                self._tick()

    def _tick(self) -> None:
        if time.monotonic() - self._beat >= HEARTBEAT_S:
            self._write()
        place = self.place
        if self.stall_s and place.lasted_s > self.stall_s and place is not self._reported:
            self._reported = place
            self._report(place)
        self._on_tick()

    def _write(self) -> None:
        self._beat = time.monotonic()
        place = self.place
        self.notes.write(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "step": place.step,
                "phase": place.phase,
                "since": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - place.lasted_s)),
                "lasted_s": round(place.lasted_s, 1),
            }
        )

    def _report(self, place: Whereabouts) -> None:
        self._write()  # the age of the others' notes is read off against ours, by the file system's one clock
        stacks = self.notes.folder / f"stacks_rank_{self.notes.rank:05d}.txt"
        lines = [
            f"rank {self.notes.rank} has been in {place.phase} of step {place.step} for {place.lasted_s:.0f} s "
            f"(parallel.stall_s={self.stall_s:g}). Where the ranks are:",
            *(f"  {line}" for line in where_ranks_are(self.notes)),
            f"Stacks of rank {self.notes.rank}, also in {stacks}:",
        ]
        print("\n".join(lines), file=sys.stderr, flush=True)
        _dump_stacks(sys.stderr)
        with stacks.open("w", encoding="utf-8") as file:
            _dump_stacks(file)


def where_ranks_are(notes: Notes) -> list[str]:
    """One line for each place, the earliest first: those are the ranks that the others wait for."""
    known = notes.read()
    now = _written(notes.path(notes.rank))
    places: dict[tuple[int, str, bool], list[int]] = {}
    for rank, note in known.items():
        silent = now - _written(notes.path(rank)) > SILENT_S
        places.setdefault((note["step"], note["phase"], silent), []).append(rank)
    return [
        f"step {step}, {phase}: {_names(ranks)}, {_duration(known, ranks)}"
        + (f"; no sign of life for more than {SILENT_S:.0f} s" if silent else "")
        for (step, phase, silent), ranks in sorted(places.items())
    ]


def _names(ranks: list[int]) -> str:
    """rank 3, or ranks 0-2, 5."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _duration(notes: dict[int, Note], ranks: list[int]) -> str:
    if len(ranks) == 1:
        note = notes[ranks[0]]
        return f"for {note['lasted_s']:.0f} s (pid {note['pid']} on {note['host']})"
    return f"for {min(notes[r]['lasted_s'] for r in ranks):.0f} s and more"


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _dump_stacks(file: IO[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor cannot take them
        faulthandler.dump_traceback(file=file, all_threads=True)
