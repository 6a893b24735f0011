"""Starts a node's ranks in a container: `python -m clusters.kubernetes.ranks train.py --config /config/run.yaml`.

The environment says where, in torchrun's words: PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK (or JOB_COMPLETION_INDEX, which an
Indexed Job sets), PET_MASTER_ADDR, PET_MASTER_PORT. The port after that one is where the nodes meet.

It differs from torchrun and the deepspeed launcher in what a scheduler sees. Those end with 1 whatever the ranks ended with, or end
a rank that is saving. Here a signal goes to the ranks alone, nobody is hurried while they save, and the exit code is that of the rank
which ended first with another than 0. When a node is lost, the ranks of the others get GRACE_S to report it and end with 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from clusters.kubernetes.meeting import meet
from clusters.ranks import Ended, Place, send, start, wait
from parallel.launch import PreflightError

GRACE_S = 60.0
"""How long ranks may go on when another has ended or a node is lost: a rank sees that by itself within half a minute."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_USER, EXIT_STOPPED = 2, 85


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
    here = number("PET_NPROC_PER_NODE", 1, "1")
    return Place(nodes * here, node * here, here, address or "127.0.0.1", port)


class Signals:
    """Pass them on to the ranks of this node; before those are there, one is remembered."""

    def __init__(self) -> None:
        self.ranks: Sequence[subprocess.Popen[bytes]] = ()
        self.stopped = False
        for number in FORWARDED:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        send(self.ranks, signal.Signals(number))


def exit_code(ended: Ended) -> int:
    """Of this node: that of the rank which failed first. Of ranks that ended together: what a user can mend says most, and a stop says
    least. A rank that a signal ended counts as in a shell, 128 + its number."""
    codes = [128 - code if code < 0 else code for code in (ended.codes[rank] for rank in ended.first)]
    if not codes:
        return 1 if ended.hung else 0
    return min(codes, key=lambda code: (code != EXIT_USER, code == EXIT_STOPPED, code))


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
        signals = Signals()
        nodes, node = place.world // place.here, place.first // place.here
        meeting = meet(node, nodes, place.address, place.port + 1, lambda: signals.stopped)
    except (PreflightError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    if meeting is None:  # told to stop before anything began: nothing is lost
        return EXIT_STOPPED
    signals.ranks = start(["-u", *words], place)
    if signals.stopped:  # it came while they were being started
        send(signals.ranks, signal.SIGTERM)
    with contextlib.suppress(OSError):  # a check's help, never needed to train
        alive_file().write_text(json.dumps([process.pid for process in signals.ranks]), encoding="utf-8")

    def is_lost() -> bool:
        broken = meeting.is_broken()
        if broken:
            print(f"another node is gone: the ranks here have {GRACE_S:g} s to end", file=sys.stderr, flush=True)
        return broken

    code = exit_code(wait(signals.ranks, float("inf"), on_tick=is_lost, leave_s=GRACE_S))
    alive_file().unlink(missing_ok=True)
    meeting.leave(done=code == 0)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
