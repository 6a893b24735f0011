"""The ranks of one machine: processes that are started together, watched, and end together.

Whatever they leave behind becomes a child of this process (Linux: a subreaper), so it is found and ended, and nothing else is.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence

import psutil

TICK_S = 0.2
LEAVE_S = 30.0
"""After a rank has failed the others end by themselves within 25 s (parallel/health/failures.py)."""
LEFT_OVER_S = 10.0
"""What ranks started, as data workers, ends by itself some seconds after them and tidies up, as shared memory."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # numbers of prctl.h
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which ranks of a world this machine starts, and where they meet."""

    world: int
    first: int
    here: int
    address: str = "127.0.0.1"
    port: int = 0
    """0: any that is free."""

    def environment(self, local: int) -> dict[str, str]:
        """What torch reads, for one rank of this machine."""
        return {
            "RANK": str(self.first + local),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(self.here),
            "WORLD_SIZE": str(self.world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


@dataclasses.dataclass(frozen=True)
class Ended:
    """codes: by rank of this machine, negative for a signal; hung: which of them had to be killed here; first: ranks that failed before
    others did."""

    codes: tuple[int, ...]
    hung: frozenset[int] = frozenset()
    first: tuple[int, ...] = ()

    @property
    def lost(self) -> tuple[int, ...]:
        """Those that a signal from elsewhere has ended; where there is none, those that did not answer."""
        killed = tuple(rank for rank, code in enumerate(self.codes) if code < 0 and rank not in self.hung)
        return killed or tuple(sorted(self.hung))


def start(words: Sequence[str], place: Place) -> list[subprocess.Popen[bytes]]:
    """A process a rank, each in a session of its own: what a terminal sends is for the parent, which passes it on."""
    environment = {
        name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("TORCHELASTIC_")
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, place.here))))
    place = place if place.port else dataclasses.replace(place, port=free_port())
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment | place.environment(local),
            start_new_session=True,
            preexec_fn=ends_with(os.getpid()),
        )
        for local in range(place.here)
    ]


def wait(
    processes: Sequence[subprocess.Popen[bytes]],
    patience_s: float,
    clean: Container[int] = (0,),
    on_tick: Callable[[], object] = lambda: None,
    leave_s: float = LEAVE_S,
) -> Ended:
    """Until all have ended. Those that stay are killed `leave_s` after one has failed or `on_tick` has said that one elsewhere has, or
    `patience_s` after one has ended well, with an exit code in `clean`."""
    deadline: float | None = None
    failing = False
    first: tuple[int, ...] = ()
    while True:
        codes = [process.poll() for process in processes]
        first = first or tuple(rank for rank, code in enumerate(codes) if code is not None and code not in clean)
        if None not in codes:
            break
        now = time.monotonic()
        if not failing and (first or on_tick()):
            failing, deadline = True, now + leave_s
        elif deadline is None and any(code is not None for code in codes):
            deadline = now + patience_s
        if deadline is not None and now > deadline:
            break
        time.sleep(TICK_S)
    hung = frozenset(rank for rank, code in enumerate(codes) if code is None)
    for rank in hung:
        processes[rank].kill()
    return Ended(tuple(process.wait() for process in processes), hung, first)


def send(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)  # none where it has ended


def adopt_orphans() -> None:
    """From now on, what is left over of this process's children becomes its own child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ends_with(parent: int) -> Callable[[], None]:
    """For a child's `preexec_fn`: it gets SIGTERM when its parent is gone, however that ended; ranks save then, and leave (Linux)."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def before_start() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return before_start


def end_left_over(patience_s: float = LEFT_OVER_S) -> list[str]:
    """With no rank running: wait for what they left, then kill it. -> names of what was killed."""
    deadline = time.monotonic() + patience_s
    while rest := _living_children():
        if time.monotonic() > deadline:
            break
        time.sleep(TICK_S)
    killed = []
    for process in rest:
        try:
            killed.append(f"{process.name()} (pid {process.pid})")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(rest, timeout=patience_s)
    return killed


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("", 0))
        port: int = opened.getsockname()[1]
        return port


def _living_children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
            elif child.ppid() == os.getpid():
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found
