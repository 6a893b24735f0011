"""Where the time of a step goes: the loop says what it does from now on, and every moment belongs to one phase.

data | forward | backward | reduce | step | report | evaluate | save

On the CPU a phase lasts by the clock. On a CUDA device the host runs ahead, so its clock would show when work was asked for: there a
phase lasts between the events that the loop's words left in the device's stream, and waiting for data is a time in which the device had
nothing to do.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

PHASES = ("data", "forward", "backward", "reduce", "step", "report", "evaluate", "save")
SENDING = ("forward", "backward", "reduce", "step")
"""What a training step sends is sent in these."""
PASSES = ("forward", "backward")
Listener = Callable[[str, int | None], None]


class Clock(Protocol):
    """Adds up seconds by phase."""

    def mark(self, phase: str) -> None: ...

    def taken(self) -> dict[str, float]: ...


class Phases:
    """Called with the name of a phase when it begins, and with the step where a new one does."""

    def __init__(self, device: str, listeners: Sequence[Listener] = ()) -> None:
        """listeners: are told first, so that what they do belongs to the phase before."""
        self._listeners = listeners
        self._clock: Clock = HostClock() if device == "cpu" else DeviceClock()

    def __call__(self, name: str, step: int | None = None) -> None:
        for listener in self._listeners:
            listener(name, step)
        self._clock.mark(name)

    def taken(self) -> dict[str, float]:
        """Seconds of each phase since the last call; the one that goes on counts until now. A device is waited for."""
        return self._clock.taken()


class HostClock:
    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "report", time.perf_counter()

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        # "start" and "end" are said outside of the loop.
        self._phase, self._since = phase if phase in PHASES else "report", now

    def taken(self) -> dict[str, float]:
        self.mark(self._phase)
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken


class DeviceClock:
    """Events that the device has reached are read as new ones are made, so that few are kept."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._marks: collections.deque[tuple[str, torch.cuda.Event]] = collections.deque()
        self.mark("report")

    def mark(self, phase: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase if phase in PHASES else "report", event))
        while len(self._marks) > 1 and self._marks[1][1].query():
            self._add_first()

    def taken(self) -> dict[str, float]:
        self.mark(self._marks[-1][0])
        self._marks[-1][1].synchronize()
        while len(self._marks) > 1:
            self._add_first()
        taken, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return taken

    def _add_first(self) -> None:
        phase, start = self._marks.popleft()
        self._seconds[phase] += start.elapsed_time(self._marks[0][1]) / 1000
