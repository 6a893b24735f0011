"""One machine: start after start, until the run is done or starting again is of no use."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clusters.ranks import Ended, Place, adopt_orphans, end_left_over, send, start, wait
from clusters.supervise.policy import Limits, State, decide
from clusters.supervise.sizes import gpus, most_that_fit
from parallel.checkpoints.saving import latest_step
from parallel.health.stop_signal import ECHO_S
from run.config import RunConfig
from run.errors import EXIT_STOPPED, ConfigError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

CLEAN = (0, EXIT_STOPPED)


class Asked:
    """What signals have asked of the supervisor. While ranks run, a request to stop is passed on at once."""

    def __init__(self) -> None:
        self.stop = False
        self.all_again = False
        self.ranks: Sequence[subprocess.Popen[bytes]] = ()
        self._first = 0.0
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR2, self._on_all_again)

    def _on_stop(self, number: int, frame: object) -> None:
        # Batch systems and terminals send the same more than once; a later one means it, and ends the ranks at once.
        if not self.stop or time.monotonic() - self._first > ECHO_S:
            send(self.ranks, signal.SIGTERM)
        if not self.stop:
            self.stop, self._first = True, time.monotonic()

    def _on_all_again(self, number: int, frame: object) -> None:
        self.all_again = True


class Return:
    """With fewer ranks than wanted: after a while, once there is a checkpoint of this start and where `more` says that more could run, the
    ranks are asked to save."""

    def __init__(self, checkpoints: Path, state: State, limits: Limits, asked: Asked, more: Callable[[], bool]) -> None:
        self.checkpoints, self.state, self.asked, self.more = checkpoints, state, asked, more
        self.every = state.return_after_s or limits.return_after_s
        self.due = time.monotonic() + self.every
        self.fewer = state.ranks < limits.ranks
        self.asking = False

    def look(self) -> None:
        if self.asking or self.asked.stop:
            return
        late = self.fewer and time.monotonic() >= self.due and latest_step(self.checkpoints) != self.state.step
        if late and not self.more():
            self.due, late = time.monotonic() + self.every, False
        if late or self.asked.all_again:
            self.asking, self.asked.all_again = True, False
            say("all ranks are tried again: asking for a save")
            send(self.asked.ranks, signal.SIGTERM)


def supervise_one(
    words: Sequence[str], run: RunConfig, nproc: int | None, at_least: int, limits: Limits, leave_s: float
) -> int:
    """Returns the exit code."""
    checkpoints = run.folder / "checkpoints"
    adopt_orphans()
    asked = Asked()
    state = State(limits.ranks, latest_step(checkpoints))
    fitting = _fitting(run, at_least, limits.ranks)
    while not asked.stop:
        ranks = fitting(min(state.ranks, usable(nproc, limits.ranks)))
        state = dataclasses.replace(state, ranks=ranks)
        say(f"starting {ranks} of {limits.ranks} ranks" + (f" from step {state.step}" if state.step >= 0 else ""))

        def more(now: int = ranks) -> bool:
            return fitting(min(limits.ranks, usable(nproc, limits.ranks))) > now

        ended, returning = _round(words, run, state, limits, asked, more, leave_s)
        decision = decide(state, ended, latest_step(checkpoints), limits, fitting, asked.stop, returning)
        say(decision.reason)
        if decision.code is not None:
            return decision.code
        state = decision.state
    say("stopped between two starts")
    return EXIT_STOPPED


def _round(
    words: Sequence[str],
    run: RunConfig,
    state: State,
    limits: Limits,
    asked: Asked,
    more: Callable[[], bool],
    leave_s: float,
) -> tuple[Ended, bool]:
    """One start until all its processes are gone; and whether ranks were asked to save so that all can start."""
    asked.ranks = start(words, Place(state.ranks, 0, state.ranks))
    if asked.stop:  # it came while they were being started
        send(asked.ranks, signal.SIGTERM)
    back = Return(run.folder / "checkpoints", state, limits, asked, more)
    ended = wait(asked.ranks, run.parallel.timeout_s, CLEAN, back.look, leave_s)
    asked.ranks = ()
    killed = end_left_over()
    if killed:
        say(f"left over and ended: {', '.join(killed)}")
    return ended, back.asking


def usable(nproc: int | None, wanted: int) -> int:
    """A GPU that has failed is listed no more. Where there are none at all, ranks are CPU ranks."""
    return min(wanted, gpus() or wanted) if nproc is None else wanted


def _fitting(run: RunConfig, at_least: int, wanted: int) -> Callable[[int], int]:
    """The most ranks up to a number; where none fits, the fewest that fit above it. `wanted` fits."""

    def fitting(at_most: int) -> int:
        for most in range(max(at_most, at_least), wanted):
            with contextlib.suppress(ConfigError):
                return most_that_fit(run, most, at_least)
        return wanted

    return fitting


def say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)
