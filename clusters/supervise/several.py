"""Several machines: torchrun's elastic agent brings them together, and starts them again when one is lost or comes.

The agent starts one process a machine (machine.py), which starts the ranks. What the agent does not know, that process tells by how it
ends: a failure is started again; done, exit code 2 and a stop by the user are not, and their exit code lies in a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clusters.ranks import TICK_S, adopt_orphans, end_left_over, ends_with
from clusters.supervise.one import STOPPING, say
from clusters.supervise.policy import EXIT_GIVEN_UP, Limits
from parallel.checkpoints import write_atomically
from run.config import RunConfig
from run.errors import EXIT_STOPPED

CODE, STOP = "code.json", "stop"
AFTER_S = 10.0
"""The agents wait for each other at the end; one that never comes must not hold the rest for five minutes."""


@dataclasses.dataclass(frozen=True)
class Machines:
    """The fewest and the most, and where they meet (HOST:PORT)."""

    least: int
    most: int
    rendezvous: str


def supervise_several(
    words: Sequence[str], run: RunConfig, machines: Machines, nproc: int, at_least: int, limits: Limits, save_s: int
) -> int:
    """Returns the exit code."""
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="supervise_") as name:
        folder = Path(name)
        process = subprocess.Popen(
            agent_command(words, run, machines, nproc, at_least, limits, save_s, folder),
            # Each start then meets at a new port: what an earlier one left in the agents' store would be in its way.
            env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            start_new_session=True,
            preexec_fn=ends_with(os.getpid()),
        )

        def stop(number: int, frame: object) -> None:
            (folder / STOP).touch()
            process.send_signal(signal.SIGTERM)

        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, stop)
        known_since: float | None = None
        while process.poll() is None:
            time.sleep(TICK_S)
            if known_since is None and (folder / CODE).exists():
                known_since = time.monotonic()
            if known_since is not None and time.monotonic() - known_since > AFTER_S:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(AFTER_S)
                process.kill()
                process.wait()
        killed = end_left_over()
        if killed:
            say(f"left over and ended: {', '.join(killed)}")
        if (folder / CODE).exists():
            return int(json.loads((folder / CODE).read_text(encoding="utf-8")))
        if (folder / STOP).exists():
            say("stopped; the same command goes on from the newest checkpoint")
            return EXIT_STOPPED
        say("torchrun's agent has given up, for want of machines or after too many restarts; its lines above say which")
        return EXIT_GIVEN_UP


def agent_command(
    words: Sequence[str],
    run: RunConfig,
    machines: Machines,
    nproc: int,
    at_least: int,
    limits: Limits,
    save_s: int,
    folder: Path,
) -> list[str]:
    return [
        sys.executable,
        "-m",
        "clusters.supervise.agent",
        f"--nnodes={machines.least}:{machines.most}",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={machines.rendezvous}",
        f"--rdzv-id={run.name}",
        f"--max-restarts={limits.restarts}",
        "--monitor-interval=0.5",
        f"--shutdown-timeout={save_s}",
        "-m",
        "clusters.supervise.machine",
        # No options here: torchrun would take beginnings of its own for them.
        *(str(value) for value in (nproc, at_least, limits.attempts, folder)),
        "--",
        *words,
    ]


def write_code(folder: Path, code: int) -> None:
    write_atomically(folder / CODE, json.dumps(code))
