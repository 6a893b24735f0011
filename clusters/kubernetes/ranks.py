"""Starts a node's ranks in a container: `python -m clusters.kubernetes.ranks train.py --config /config/run.yaml`.

The environment says where, in torchrun's words: PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK (or JOB_COMPLETION_INDEX, which an
Indexed Job sets), PET_MASTER_ADDR, PET_MASTER_PORT. The port after that one is where the nodes meet.

It differs from torchrun and the deepspeed launcher in what a scheduler sees. Those end with 1 whatever the ranks ended with, or end
a rank that is saving. Here a signal goes to the ranks alone, nobody is hurried while they save, and the exit code is that of the rank
which ended first with another than 0. When a node is lost, the ranks of the others get GRACE_S to report it and end with 1.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from clusters.kubernetes.meeting import Meeting, meet
from parallel.launch import PreflightError

GRACE_S = 60.0
"""How long ranks may go on when another has ended or a node is lost: a rank sees that by itself within half a minute."""
POLL_S = 0.2
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_USER, EXIT_STOPPED = 2, 85


@dataclasses.dataclass(frozen=True)
class Place:
    """Of this node among all. per_node: ranks of each."""

    nodes: int
    per_node: int
    node: int
    address: str
    port: int

    def environment(self, local: int) -> dict[str, str]:
        """What torch reads, for one rank."""
        return {
            "RANK": str(self.node * self.per_node + local),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.nodes * self.per_node),
            "LOCAL_WORLD_SIZE": str(self.per_node),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def place_of(environment: Mapping[str, str]) -> Place:
    """Raises PreflightError for what is missing or no number."""

    def number(name: str, least: int, default: str) -> int:
        text = environment.get(name, "") or default
        if not text.isdecimal() or int(text) < least:
            raise PreflightError(f"{name}={text!r}: must be a whole number from {least}; the manifest sets it")
        return int(text)

    nodes = number("PET_NNODES", 1, "1")
    node = number("PET_NODE_RANK", 0, environment.get("JOB_COMPLETION_INDEX", "0"))
    port = number("PET_MASTER_PORT", 1, "29500")
    address = environment.get("PET_MASTER_ADDR", "")
    if node >= nodes:
        raise PreflightError(
            f"PET_NODE_RANK={node} is not below PET_NNODES={nodes}: completions and PET_NNODES must agree"
        )
    if nodes > 1 and not address:
        raise PreflightError("PET_MASTER_ADDR is not set: the name of the first node, as demo-0.demo")
    if port >= 65_535:
        raise PreflightError(f"PET_MASTER_PORT={port}: must be below 65535, as the port after it is used too")
    return Place(nodes, number("PET_NPROC_PER_NODE", 1, "1"), node, address or "127.0.0.1", port)


class Ranks:
    """The processes of this node. Signals reach them; before they are there, a signal is remembered."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped = False
        for number in FORWARDED:
            signal.signal(number, self._pass_on)

    def start(self, words: Sequence[str], place: Place) -> None:
        for local in range(place.per_node):
            variables = os.environ | place.environment(local)
            self.processes.append(subprocess.Popen([sys.executable, "-u", *words], env=variables))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def wait(self, meeting: Meeting) -> int:
        """The exit code of this node."""
        code, deadline = 0, float("inf")
        running = list(self.processes)
        while running:
            ended = [process for process in running if process.poll() is not None]
            running = [process for process in running if process not in ended]
            failed = [process.returncode for process in ended if process.returncode]
            if failed and not code:
                code = first_of(failed)
                deadline = min(deadline, time.monotonic() + GRACE_S)
            if deadline == float("inf") and meeting.is_broken():
                print(f"another node is gone: the ranks here have {GRACE_S:g} s to end", file=sys.stderr, flush=True)
                deadline = time.monotonic() + GRACE_S
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
                code = code or 1
            time.sleep(POLL_S)
        return code


def first_of(codes: Sequence[int]) -> int:
    """Of ranks that ended together: what a user can mend says most, and a stop says least. A rank that a signal ended counts as in a
    shell, 128 + its number."""
    shell = [128 - code if code < 0 else code for code in codes]
    return min(shell, key=lambda code: (code != EXIT_USER, code == EXIT_STOPPED, code))


def alive_file() -> Path:
    return Path(tempfile.gettempdir()) / "ranks.json"


def is_healthy() -> bool:
    """Do all ranks that were started here live? For the image's HEALTHCHECK; true where none were."""
    try:
        pids = json.loads(alive_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return all(Path(f"/proc/{int(pid)}").exists() for pid in pids)


def main(words: Sequence[str]) -> int:
    if list(words) == ["--check"]:
        return 0 if is_healthy() else 1
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else EXIT_USER
    try:
        place = place_of(os.environ)
        ranks = Ranks()
        meeting = meet(place.node, place.nodes, place.address, place.port + 1, lambda: ranks.stopped)
    except (PreflightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    if meeting is None:  # told to stop before anything began: nothing is lost
        return EXIT_STOPPED
    ranks.start(words, place)
    with contextlib.suppress(OSError):  # a check's help, never needed to train
        alive_file().write_text(json.dumps([process.pid for process in ranks.processes]), encoding="utf-8")
    code = ranks.wait(meeting)
    alive_file().unlink(missing_ok=True)
    meeting.leave(done=code == 0)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
