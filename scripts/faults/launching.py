"""The commands of a trial, and what runs of them."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from clusters.ranks import free_port
from scripts.faults.faults import RANKS

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TARGET = ROOT / "train.py", ROOT / "scripts" / "faults" / "target.py"
MARK = "FAULT_TRIAL"
TICK_S = 0.005


@dataclasses.dataclass(frozen=True)
class Trial:
    """Where a fault's run and notes lie. mark: a word that all its processes have in their environment."""

    folder: Path
    mark: str
    environment: dict[str, str]

    @property
    def trace(self) -> Path:
        return self.folder / "trace"


@dataclasses.dataclass(frozen=True)
class Started:
    """processes: what a user would wait for: the supervisor, or the ranks where there is none."""

    trial: Trial
    processes: tuple[subprocess.Popen[bytes], ...]

    @functools.cached_property
    def ranks(self) -> dict[int, psutil.Process]:
        """Those that run when it is first asked for: looking through all processes takes longer than a step."""
        return self.find_ranks()

    def find_ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in marked(self.trial.mark):
            try:
                name, parent = process.environ().get("RANK"), process.parent()
                if name is not None and (parent is None or "RANK" not in parent.environ()):
                    found[int(name)] = process
            except psutil.Error:
                continue
        return found

    def code(self) -> int | None:
        """The first that is not 0; None while one runs."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)


def supervised(trial: Trial, script: Path, words: list[str], restarts: int = 0) -> Started:
    options = ["supervise", f"--nproc={RANKS}", f"--max-restarts={restarts}", "--return-after=0"]
    return _started(trial, [[sys.executable, "-m", "clusters", *options, "--", str(script), *words]], [{}])


def in_namespaces(trial: Trial, script: Path, words: list[str], machines: dict[str, str], cable: str) -> Started:
    """A rank a machine, as srun would start them; machines: their addresses by name."""
    address, port = next(iter(machines.values())), free_port()
    commands, environments = [], []
    for rank, name in enumerate(machines):
        commands.append(["ip", "netns", "exec", name, sys.executable, str(script), *words])
        place = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": 0, "MASTER_ADDR": address, "MASTER_PORT": port}
        environments.append({key: str(value) for key, value in place.items()} | {"GLOO_SOCKET_IFNAME": cable})
    return _started(trial, commands, environments)


def _started(trial: Trial, commands: list[list[str]], environments: list[dict[str, str]]) -> Started:
    trial.trace.mkdir(parents=True, exist_ok=True)
    common = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "WANDB_MODE": "disabled",
        "FAULT_TRACE": str(trial.trace),
        MARK: trial.mark,
    }
    with (trial.folder / "output.txt").open("ab") as output:
        return Started(
            trial,
            tuple(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=common | trial.environment | environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                for command, environment in zip(commands, environments, strict=True)
            ),
        )


def marked(mark: str) -> list[psutil.Process]:
    """All living processes of a trial, also those that have left their parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def wait_for_ranks(started: Started, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while len(started.find_ranks()) < RANKS:
        if started.code() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def wait_for_place(started: Started, rank: int, place: str, limit_s: float) -> bool:
    """Until the rank is at `STEP PHASE`; False if it ends before, or the time is over."""
    path, deadline = started.trial.trace / str(rank), time.monotonic() + limit_s
    while True:
        if path.exists() and place in path.read_text(encoding="utf-8").splitlines():
            return True
        if started.code() is not None or time.monotonic() > deadline:
            return False
        time.sleep(TICK_S)


def wait_for_end(started: Started, limit_s: float) -> tuple[int | None, float]:
    """(exit code, seconds until no process of the trial was left); None: something still ran after `limit_s`."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        if started.code() is not None and not marked(started.trial.mark):
            return started.code(), time.monotonic() - begun
        time.sleep(0.1)
    return None, time.monotonic() - begun
