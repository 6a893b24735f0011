"""Faults of processes, limits and clocks: each yields a stage, on which one run is disturbed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from scripts.faults.faults import Fault
from scripts.faults.launching import Started, Trial, supervised

Launch = Callable[[Trial, Path, list[str]], Started]
MEMORY = Path("/sys/fs/cgroup/memory")
JUMP_S = 7200


@dataclasses.dataclass(frozen=True)
class Stage:
    """act: the fault itself, at its place; mend: what an administrator does before the command is started again; codes: how the disturbed
    command may end; saves: nothing at all may be lost, since the run was asked to stop."""

    act: Callable[[Started], None]
    codes: frozenset[int]
    mend: Callable[[], None] = lambda: None
    launch: Launch = supervised
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    disk: Path | None = None
    saves: bool = False


Kind = Callable[[Fault, Path], contextlib.AbstractContextManager[Stage]]


def signalled(number: signal.Signals, who: str, codes: set[int], saves: bool = False) -> Kind:
    """who: one, all (ranks), supervisor or worker."""

    @contextlib.contextmanager
    def stage(fault: Fault, folder: Path) -> Iterator[Stage]:
        def act(started: Started) -> None:
            ranks = started.ranks
            chosen: list[psutil.Process] = []
            match who:
                case "one":
                    chosen = [ranks[fault.rank]]
                case "all":
                    chosen = list(ranks.values())
                case "supervisor":
                    chosen = [psutil.Process(process.pid) for process in started.processes]
                case "worker":
                    children = ranks[fault.rank].children(recursive=True)
                    chosen = [child for child in children if not child.children() and _is_worker(child)][:1]
            for process in chosen:
                process.send_signal(number)

        yield Stage(act, frozenset(codes), saves=saves)

    return stage


def _is_worker(process: psutil.Process) -> bool:
    return "forkserver" in " ".join(process.cmdline())


@contextlib.contextmanager
def killed_and_restarted(fault: Fault, folder: Path) -> Iterator[Stage]:
    def launch(trial: Trial, script: Path, words: list[str]) -> Started:
        return supervised(trial, script, words, restarts=3)

    def act(started: Started) -> None:
        started.ranks[fault.rank].kill()

    yield Stage(act, frozenset({0}), launch=launch)


def clock(jump_s: int) -> Kind:
    """The wall clock jumps for all processes of the run (clock.c); the monotonic clock goes on, as that of a machine does. Files keep the
    machine's own time, so that their times jump against the program's."""

    @contextlib.contextmanager
    def stage(fault: Fault, folder: Path) -> Iterator[Stage]:
        library, offset = folder / "clock.so", folder / "offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(
            ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True, capture_output=True
        )
        offset.write_bytes((0).to_bytes(8, sys.byteorder))

        def act(started: Started) -> None:
            with offset.open("r+b") as file:  # in place, as it is mapped
                file.write(jump_s.to_bytes(8, sys.byteorder, signed=True))

        environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
        yield Stage(act, frozenset({0}), environment=environment)

    return stage


@contextlib.contextmanager
def address_space(fault: Fault, folder: Path) -> Iterator[Stage]:
    """`ulimit -v` at what the rank has: the next allocation that needs more fails."""

    def act(started: Started) -> None:
        rank = started.ranks[fault.rank]
        limit = rank.memory_info().vms
        resource.prlimit(rank.pid, resource.RLIMIT_AS, (limit, limit))

    yield Stage(act, frozenset({0, 1, 2}))


@contextlib.contextmanager
def out_of_memory(fault: Fault, folder: Path) -> Iterator[Stage]:
    """A control group that gives the rank 256 KiB more than it has: the kernel kills it as soon as it takes more."""
    group = MEMORY / f"fault_{os.getpid()}_{fault.number}"
    group.mkdir()

    def act(started: Started) -> None:
        (group / "memory.limit_in_bytes").write_text(str(256 << 10), encoding="utf-8")
        (group / "cgroup.procs").write_text(str(started.ranks[fault.rank].pid), encoding="utf-8")

    try:
        yield Stage(act, frozenset({0, 1}))
    finally:
        for _ in range(100):
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                break
