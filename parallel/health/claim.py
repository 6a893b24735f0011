"""One run at a time in a folder: who holds it, said in a file that all machines see.

in_use.json    host and process of the first rank; touched every few seconds, removed at the end

A holder on this machine is asked for by its process. One elsewhere counts as gone when it has not touched the file for half a
minute: files are all that machines with a common file system surely share, since their locks often hold for one machine alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from parallel.health.processes import is_same, lives, machine, myself, process

IN_USE = "in_use.json"
BEAT_S = 5.0
SILENT_S = 6 * BEAT_S
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class FolderError(Exception):
    """The folder of a run cannot be used: another run writes there, or nobody may."""


class FolderClaim:
    """Held by the one process that writes into the folder."""

    def __init__(self, folder: Path) -> None:
        """Raises FolderError, before anything is written, if another run holds the folder."""
        self.path = folder / IN_USE
        self._mine = {**myself(), "start": secrets.token_hex(8)}
        self._beat = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while not self._publish():
                holder = _read(self.path)
                if holder is None:
                    continue  # it has just left
                if _is_held(self.path, holder):
                    raise FolderError(
                        f"{folder} is in use by {_name(holder)}: let it end or stop it, or choose another name="
                    )
                self._remove(holder)
        except OSError as error:
            raise FolderError(f"{folder} cannot be written: {error.strerror or error}; choose another runs=") from error

    def beat(self) -> str | None:
        """Say that this process lives. -> who has taken the folder meanwhile, for instance while this machine slept."""
        if time.monotonic() - self._beat < BEAT_S:
            return None
        self._beat = time.monotonic()
        holder = _read(self.path)
        if holder and holder != self._mine:  # a file that cannot be read now says nothing
            return _name(holder)
        with contextlib.suppress(OSError):  # a note must never stop a run
            os.utime(self.path)
        return None

    def release(self) -> None:
        if _read(self.path) == self._mine:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _publish(self) -> bool:
        """The file, if there is none; whole or not at all."""
        text = json.dumps(self._mine, indent=1) + "\n"
        temporary = self.path.with_name(f".{IN_USE}.{self._mine['start']}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                with self.path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _remove(self, gone: dict[str, Any]) -> None:
        """The file of a holder that is gone; that of another start which was faster stays."""
        taken = self.path.with_name(f".{IN_USE}.{self._mine['start']}.gone")
        try:
            os.replace(self.path, taken)
        except FileNotFoundError:
            return
        if _read(taken) != gone:
            with contextlib.suppress(FileExistsError):
                os.link(taken, self.path)
        taken.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """None if there is no such file; {} if it says nothing that can be understood."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_held(path: Path, holder: dict[str, Any]) -> bool:
    here = machine()
    if here and holder.get("machine") == here and isinstance(holder.get("pid"), int):
        found = process(holder["pid"])
        return found is not None and lives(found) and is_same(found, holder)
    before, deadline = _touched(path), time.monotonic() + SILENT_S
    print(
        f"{path.parent} was used by {_name(holder)}: waiting up to {SILENT_S:.0f} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if _touched(path) != before:
            return True  # or removed: then the next look finds the folder free
    return False


def _touched(path: Path) -> int:
    """Opened for it, as network file systems answer from memory otherwise."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown machine')}"
