"""How a run of many ranks ends when one fails: all ranks leave within half a minute, and the cause is printed last.

errors/ rank_00001.json    why rank 1 failed: step, phase, traceback; those of earlier starts are removed at the next start

The rank that failed first waits for the others and prints its traceback. They notice it by its note, also on other machines and
when they hang in a collective, and print one line. A rank that was killed leaves no note: others on its machine see that its
process is gone, and tell the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import psutil
import torch.distributed as dist

from parallel.health.claim import FolderClaim, FolderError
from parallel.health.notes import Note, Notes
from parallel.health.processes import lives, machine, process
from parallel.health.watchdog import Watchdog

EXIT_FAILURE = 1
GRACE_S = 5.0
"""How long a rank may go on after another failed: it may be about to report an error of its own."""
SETTLE_S = 2.0
"""Ranks that fail together wait so long for each other's notes before they decide who was first."""
LAST_WORD_S = 15.0
"""How long the rank that failed first waits for the others to leave."""
LOST_CONNECTION = re.compile(
    r"gloo/transport|ncclRemoteError|NCCL communicator was aborted|Watchdog caught collective operation timeout"
)
"""What gloo and NCCL say when the other end does not answer. An S3 client's lost connection is none of these."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A rank's process. `machine` is empty where processes of another rank cannot be told from one's own."""

    rank: int
    host: str
    machine: str
    pid: int


class RankGuard:
    """Context manager around the training of one rank; inert until `start`, as errors before that are every rank's own.

    An error of `user_errors` is noted for the other ranks and passes through. Any other ends the process with exit code 1
    after the report; where there is only one rank, it is noted and passes through too. Ranks that leave because of a user error of another
    do so with its exit code, where `exit_code` says that.
    """

    def __init__(
        self,
        user_errors: tuple[type[Exception], ...] = (),
        exit_code: Callable[[Exception], int] = lambda error: EXIT_FAILURE,
    ) -> None:
        self.user_errors, self.exit_code = user_errors, exit_code
        self.watchdog: Watchdog | None = None
        self._peers: list[Peer] = []
        self._processes: dict[int, psutil.Process | None] = {}
        self._claim: FolderClaim | None = None
        self._noticed: float | None = None
        self._ending = threading.Lock()

    def start(self, run_folder: Path, stall_s: float) -> Watchdog:
        """Collective. From here on the folder is this run's, the other ranks are told of this one's failure and this one of theirs.
        Raises FolderError on all ranks if another run holds the folder."""
        rank = dist.get_rank()
        self._claim = _claimed(run_folder)
        if rank == 0:  # nobody writes a note before the exchange below, so these are all of earlier starts
            for name in ("health", "errors"):
                Notes(run_folder / name, "", rank).remove_all()
        mine = (secrets.token_hex(8), Peer(rank, socket.gethostname(), machine(), os.getpid()))
        everyone: list[Any] = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        self._peers = [peer for _, peer in everyone]
        for peer in self._peers:
            if peer.rank != rank and peer.machine and peer.machine == mine[1].machine:
                self._processes[peer.rank] = process(peer.pid)
        start = everyone[0][0]
        self.errors = Notes(run_folder / "errors", start, rank)
        self.watchdog = Watchdog(Notes(run_folder / "health", start, rank), stall_s, self._look_at_the_others)
        self.watchdog.start()
        return self.watchdog

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.watchdog is None or not isinstance(error, Exception):
            self._leave()
            return
        self._ending.acquire()  # never released: either this thread ends the process or the watchdog's does
        lost = is_lost_connection(error)
        written = self._note(error, lost)
        if len(self._peers) == 1 or isinstance(error, self.user_errors):
            self._leave()
            return
        # The launcher sends SIGTERM to the rest as soon as one rank has left; the report must still get out.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not written:  # the others will see that this rank is gone, and need not be waited for
            self._end(self._traceback(error))
        first = self._first(wait_for_one=lost)
        if first is None:
            self._note(error, lost)  # again, as by now it is known who is gone
        if first is not None and first["rank"] == self.errors.rank:
            self._let_others_go()
            self._end(self._traceback(error))
        self._end(self._consequence(first, error), first)

    def _leave(self) -> None:
        if self.watchdog is not None:
            self.watchdog.close()
        if self._claim is not None:
            self._claim.release()

    # -- this rank's failure -------------------------------------------------------------------------------------

    def _note(self, error: Exception | None, lost: bool) -> bool:
        assert self.watchdog is not None
        place = self.watchdog.place
        return self.errors.write(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "step": place.step,
                "phase": place.phase,
                "time": time.time(),
                "in_consequence": lost,
                "gone": self._names_of_gone(),
                "exit_code": self.exit_code(error) if isinstance(error, self.user_errors) else EXIT_FAILURE,
                "error": "" if error is None else _first_line(error),
                "traceback": "" if error is None else "".join(traceback.format_exception(error)),
            }
        )

    def _traceback(self, error: Exception) -> str:
        assert self.watchdog is not None
        place = self.watchdog.place
        text = "".join(traceback.format_exception(error))
        return f"rank {self.errors.rank} failed first at step {place.step} ({place.phase})\n{text}"

    def _let_others_go(self) -> None:
        assert self.watchdog is not None
        deadline = time.monotonic() + LAST_WORD_S
        while time.monotonic() < deadline and self.watchdog.notes.ranks() - {self.errors.rank}:
            time.sleep(0.2)

    # -- others' failures ----------------------------------------------------------------------------------------

    def _look_at_the_others(self) -> None:
        """Runs in the watchdog's thread: ends this process some time after another rank has failed or is gone, and at once where
        another run has taken the folder, since this one must not write there any more."""
        taken_by = self._claim.beat() if self._claim is not None else None
        if taken_by and self._ending.acquire(blocking=False):
            self._note(
                FolderError(f"the folder was taken by {taken_by} while this run gave no sign of life"), lost=False
            )
            self._end(
                f"stopped: {self.errors.folder.parent} was taken by {taken_by} while this run gave no sign of life"
            )
        failed = bool(self.errors.ranks() - {self.errors.rank}) and bool(self.errors.read())
        if not failed and not self._gone():
            return
        if self._noticed is None:
            self._noticed = time.monotonic()
        elif time.monotonic() - self._noticed > GRACE_S and self._ending.acquire(blocking=False):
            first = self._first(wait_for_one=False)
            if first is None:
                self._note(None, lost=True)  # ranks on other machines cannot see which process is gone
            self._end(self._consequence(first, None), first)

    def _first(self, wait_for_one: bool) -> Note | None:
        """The note of the first failure that no other one explains; None if there is none."""
        deadline = time.monotonic() + SETTLE_S * (2 if wait_for_one else 1)
        while True:
            causes = [note for note in self.errors.read().values() if not note["in_consequence"]]
            enough = wait_for_one and (causes or self._known_gone())
            if enough or time.monotonic() > deadline:
                return min(causes, key=lambda note: (note["time"], note["rank"]), default=None)
            time.sleep(0.2)

    def _gone(self) -> list[Peer]:
        """Ranks on this machine whose process has ended without taking its note away."""
        assert self.watchdog is not None
        dead = [peer for peer in self._peers if peer.rank in self._processes and not lives(self._processes[peer.rank])]
        # In this order: a rank that leaves properly takes its note away before its process ends.
        return [peer for peer in dead if self.watchdog.notes.path(peer.rank).exists()]

    def _known_gone(self) -> list[str]:
        """Those on all machines, as far as somebody has told."""
        told = {name for note in self.errors.read().values() for name in note["gone"]}
        return sorted(told | set(self._names_of_gone()))

    def _names_of_gone(self) -> list[str]:
        return [f"rank {peer.rank} (pid {peer.pid} on {peer.host})" for peer in self._gone()]

    def _consequence(self, first: Note | None, error: Exception | None) -> str:
        """The one line of a rank that leaves because of others."""
        assert self.watchdog is not None
        head, place = f"rank {self.errors.rank} stopped", self.watchdog.place
        if first is not None:
            return (
                f"{head}: rank {first['rank']} failed first at step {first['step']} ({first['phase']}): {first['error']}; "
                f"see {self.errors.path(first['rank'])}"
            )
        gone = self._known_gone()
        if gone:
            return (
                f"{head} at step {place.step} ({place.phase}): {', '.join(gone)} is gone without a report, killed from outside or for "
                "want of memory; the same command resumes from the newest checkpoint"
            )
        others = (f"rank {rank}: {note['error']}" for rank, note in self.errors.read().items() if note["error"])
        reason = _first_line(error) if error else next(others, "")
        return (
            f"{head} at step {place.step} ({place.phase}): another rank does not answer and none has reported a cause, so it was "
            f"killed or its machine or network is down; the same command resumes from the newest checkpoint. {reason}; see "
            f"{self.errors.folder}"
        )

    def _end(self, text: str, first: Note | None = None) -> NoReturn:
        """With the exit code of the first failure. Without Python's clean-up, which can wait for groups whose other ends are gone."""
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            print(text, file=sys.stderr, flush=True)
        assert self.watchdog is not None
        self.watchdog.notes.remove()
        if self._claim is not None:
            self._claim.release()
        os._exit(first.get("exit_code", EXIT_FAILURE) if first else EXIT_FAILURE)


def is_lost_connection(error: BaseException) -> bool:
    """Does the error say no more than that other ranks do not answer?"""
    return isinstance(error, dist.DistNetworkError | dist.DistStoreError) or bool(LOST_CONNECTION.search(str(error)))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _claimed(folder: Path) -> FolderClaim | None:
    """Collective. The first rank's claim; None on the others."""
    claim, refused = None, [""]
    if dist.get_rank() == 0:
        try:
            claim = FolderClaim(folder)
        except FolderError as error:
            refused = [str(error)]
    dist.broadcast_object_list(refused, src=0)
    if refused[0]:
        raise FolderError(refused[0])
    return claim
