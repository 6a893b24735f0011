"""What torchrun's agent starts on each machine: this machine's ranks of one start.

Exit codes, for the agent: 0 nothing more to do (the run's own code lies in the folder of notes), 1 start again with those there are.

supervised.json    in the run's folder: how the start ended, where that is final; for machines whose ranks only saw others leave, or
                   that had to wait since the machines are more than fit
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clusters.ranks import TICK_S, Place, adopt_orphans, end_left_over, send, start, wait
from clusters.supervise.command import run_of
from clusters.supervise.one import CLEAN, say
from clusters.supervise.policy import Decision, Limits, State, decide
from clusters.supervise.several import STOP, write_code
from clusters.supervise.sizes import most_that_fit, share
from parallel.checkpoints import write_atomically
from parallel.checkpoints.saving import latest_step
from parallel.health.claim import IN_USE
from run.errors import EXIT_STOPPED, EXIT_USER, USER_ERRORS

PUBLISHED = "supervised.json"
STATE = "state.json"
HEAR_S = 5.0
AGAIN, NO_MORE = 1, 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("nproc", "min", "attempts"):
        parser.add_argument(name, type=int)
    parser.add_argument("notes", type=Path, help="folder for what this machine keeps between starts")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    machine, machines = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    adopt_orphans()
    try:
        run = run_of(words)
        world = most_that_fit(run, machines * arguments.nproc, arguments.min)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        write_code(arguments.notes, EXIT_USER)
        return NO_MORE
    first, here = share(world, arguments.nproc, machine)
    start_name, published = f"{address}:{port}", run.folder / PUBLISHED
    asked = Stopping()
    if not here:
        say(f"{world} ranks fit {machines} machines of {arguments.nproc}: this one waits")
        code = _heard(published, start_name, asked, run.parallel.timeout_s)
        if code is None:
            return AGAIN
        write_code(arguments.notes, code)
        return NO_MORE
    state = _state(arguments.notes, here, latest_step(run.folder / "checkpoints"))
    if machine == 0:
        say(f"starting {world} ranks on {machines} machines" + (f" from step {state.step}" * (state.step >= 0)))
    asked.ranks = start(words, Place(world, first, here, address, port))
    if asked.requested:
        send(asked.ranks, signal.SIGTERM)
    ended = wait(asked.ranks, run.parallel.timeout_s, CLEAN)
    end_left_over()
    stopped = (arguments.notes / STOP).exists()
    limits = Limits(here, arguments.attempts, sys.maxsize, 0.0)
    step = latest_step(run.folder / "checkpoints")
    decision = decide(state, ended, step, limits, lambda ranks: here, stopped or asked.requested)
    say(decision.reason)
    return _tell(decision, arguments.notes, published, start_name, stopped)


def _tell(decision: Decision, notes: Path, published: Path, start_name: str, stopped: bool) -> int:
    code = decision.code
    if code == EXIT_STOPPED and not stopped:
        code = None  # another machine was stopped, or a machine comes or goes and the agents ask for a new start
    if code is None:
        code = _heard(published, start_name, None, HEAR_S)
    elif code != EXIT_STOPPED or stopped:
        with contextlib.suppress(OSError):
            write_atomically(published, json.dumps({"start": start_name, "code": code}))
    if code is None:
        state = dataclasses.asdict(decision.state)
        write_atomically(notes / STATE, json.dumps(state))
        return AGAIN
    write_code(notes, code)
    return NO_MORE


class Stopping:
    """SIGTERM of the agent is passed on to ranks that run, now and once they do."""

    def __init__(self) -> None:
        self.requested = False
        self.ranks: Sequence[subprocess.Popen[bytes]] = ()
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.requested = True
        send(self.ranks, signal.SIGTERM)


def _heard(published: Path, start_name: str, waiting: Stopping | None, patience_s: float) -> int | None:
    """The exit code that another machine has published of this start; None if the time is over. One that waits without ranks goes by the
    run's signs of life, and ends where it is to stop."""
    alive, since = 0.0, time.monotonic()
    while time.monotonic() - since < patience_s:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(published.read_text(encoding="utf-8"))
            if told["start"] == start_name:
                return int(told["code"])
        if waiting is not None:
            if waiting.requested:
                return None
            with contextlib.suppress(OSError):
                if (touched := published.with_name(IN_USE).stat().st_mtime) != alive:
                    alive, since = touched, time.monotonic()
        time.sleep(TICK_S)
    return None


def _state(notes: Path, ranks: int, step: int) -> State:
    """What earlier starts on this machine have left."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dataclasses.replace(State(**json.loads((notes / STATE).read_text(encoding="utf-8"))), ranks=ranks)
    return State(ranks, step)


if __name__ == "__main__":
    sys.exit(main())
