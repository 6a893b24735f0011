"""Upload beside a training, as a process of its own: a store that is dead or slow never holds up the training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from clusters.store.place import StoreError
from clusters.store.upload import Upload
from parallel.health.claim import IN_USE
from parallel.health.processes import is_same, lives, machine, process
from parallel.health.stop_signal import StopSignal

POLL_S = 1.0
SILENT_S = 120.0
"""A run elsewhere that has not touched its claim for so long is gone; it does every few seconds."""
MAX_PAUSE_S = 300.0


@dataclasses.dataclass
class Claim:
    """Whether somebody trains in a folder, seen from any machine with the same file system: no clocks are compared."""

    folder: Path
    seen: bool = False
    _touched: int = 0
    _since: float = 0.0

    def is_held(self) -> bool:
        path = self.folder / IN_USE
        try:
            with path.open("rb") as file:  # opened for it, as network file systems answer from memory otherwise
                touched, text = os.fstat(file.fileno()).st_mtime_ns, file.read(4096)
        except OSError:
            return False
        if touched != self._touched:
            self._touched, self._since = touched, time.monotonic()
        held = not _is_dead_here(text) and time.monotonic() - self._since < SILENT_S
        self.seen |= held
        return held


def _is_dead_here(text: bytes) -> bool:
    """Does the claim name a process of this machine that is gone?"""
    try:
        holder = json.loads(text)
        if not machine() or holder["machine"] != machine():
            return False
        found = process(int(holder["pid"]))
        return found is None or not lives(found) or not is_same(found, holder)
    except (ValueError, KeyError, TypeError):
        return False


def follow(upload: Upload, every_s: float, wait_s: float) -> bool:
    """Rounds until the run has ended, and one after it. -> whether all is in the store then.

    A round that the store fails is told and tried again, after longer and longer pauses; after the end for wait_s more. A signal asks to
    end when the run ends, as batch systems send it to both; a second one after some seconds ends at once.
    """
    claim, stop = Claim(upload.run), StopSignal()
    if not _started(claim, stop, wait_s):
        upload.tell(f"warning: nobody trains in {upload.run}; uploading what is there")
    failures = 0
    while claim.is_held():
        failures = 0 if _tried(upload) else failures + 1
        pause = min(MAX_PAUSE_S, every_s * 2**failures) * random.uniform(0.75, 1.0)
        _sleep(pause, lambda: claim.is_held() and not stop.requested)
        if stop.requested and claim.is_held():
            upload.tell(
                f"asked to stop: uploading until the run in {upload.run} has ended; a second signal ends at once"
            )
            while claim.is_held():
                time.sleep(POLL_S)
    return _last(upload, wait_s)


def _started(claim: Claim, stop: StopSignal, wait_s: float) -> bool:
    _sleep(wait_s, lambda: not claim.is_held() and not stop.requested)
    return claim.seen


def _tried(upload: Upload) -> bool:
    try:
        upload.round()
    except StoreError as error:
        upload.tell(f"warning: {error}; the training goes on, and the upload is tried again")
        return False
    return True


def _last(upload: Upload, wait_s: float) -> bool:
    """What the run has left. Raises StoreError where the store stays dead."""
    deadline, pause = time.monotonic() + wait_s, POLL_S
    while True:
        with contextlib.suppress(StoreError) if time.monotonic() + pause < deadline else contextlib.nullcontext():
            return upload.round()
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_S)


def _sleep(seconds: float, goes_on: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while goes_on() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(POLL_S, left))
