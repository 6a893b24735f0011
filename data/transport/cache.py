"""Whole shards on local disk, fetched once for all processes of a machine, within a limit of bytes.

    <folder>/objects/<key>.tar, <key>.tar.index.json    complete; published by rename
    <folder>/partial/<key>.tar, <key>.json              unfinished, and which version of the shard it is of
    <folder>/lists/                                     what was counted in shards that have no list of their own
    <folder>/lock                                       held while room is made

A key is a hash of the URL. Locks are flock's, which end with their process: whoever fetches holds that of the unfinished file, whoever
reads that of the object, so that room is never made by removing a shard that is being read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data.transport.fetch import Known, download
from data.transport.reply import FetchError, FetchOptions, TransientError
from data.transport.urls import shown

RESERVE_BYTES = 64 << 20
"""Room is made in such steps for a shard of unknown length."""
RETRY_AFTER_S = 300.0
"""For so long a process takes a shard that could not be fetched for lost."""
USED_AGAIN_S = 2.0
"""The time of the last use is noted no more often than this."""
_POLL_S = 0.05

Finish = Callable[[Path, Path], None]
"""(unfinished file, where the index goes): looks at a shard before it is published; raises FetchError to refuse it."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """limit_bytes: of all complete and unfinished shards together."""

    folder: Path
    limit_bytes: int
    options: FetchOptions = dataclasses.field(default_factory=FetchOptions)
    _lost: dict[str, tuple[float, FetchError]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @contextlib.contextmanager
    def open(self, url: str, finish: Finish, expected_bytes: int | None = None) -> Iterator[BinaryIO]:
        """The shard as an open file; fetched first if need be. Raises FetchError.

        expected_bytes: its length by its list; another length is refused.
        """
        while True:
            try:
                file = self._present(url, expected_bytes)
            except OSError as error:
                raise self._unusable(url, error) from error
            if file is not None:
                break
            self.fetch(url, finish, expected_bytes)
        with file:
            yield file

    def has(self, url: str) -> bool:
        return self._object(url).exists()

    def fetch(self, url: str, finish: Finish, expected_bytes: int | None = None, wait: bool = True) -> None:
        """Have the shard here. With wait=False (ahead of need), leave it to the process that fetches it already, if one does,
        and to the reader to try again what may only have failed for now."""
        since, earlier = self._lost.get(url, (float("-inf"), None))
        if earlier and time.monotonic() - since < RETRY_AFTER_S:
            raise FetchError(str(earlier)) from earlier
        try:
            self._fetch(url, finish, expected_bytes, wait)
        except FetchError as error:
            passing = NoRoomError if wait else TransientError
            if not isinstance(error, passing) and not isinstance(error.__cause__, passing):
                self._lost[url] = (time.monotonic(), error.with_traceback(None))
            raise
        except OSError as error:
            raise self._unusable(url, error) from error

    def _unusable(self, url: str, error: OSError) -> FetchError:
        return FetchError(f"{shown(url)}: the cache {self.folder} cannot be used: {error}")

    def path(self, url: str) -> Path:
        """Where the shard is, once it has been fetched."""
        return self._object(url)

    def _key(self, url: str) -> str:
        return hashlib.sha256(url.encode()).hexdigest()[:40]

    def _object(self, url: str) -> Path:
        return self.folder / "objects" / f"{self._key(url)}.tar"

    def _present(self, url: str, expected_bytes: int | None) -> BinaryIO | None:
        path = self._object(url)
        try:
            file = path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_file(file, path):  # removed between opening and locking
            file.close()
            return None
        if expected_bytes is not None and os.fstat(file.fileno()).st_size != expected_bytes:
            file.close()
            path.unlink(missing_ok=True)  # of another version than the list
            return None
        if time.time() - os.fstat(file.fileno()).st_atime > USED_AGAIN_S:
            os.utime(file.fileno())  # by hand: file systems may be mounted without it
        return file

    def _fetch(self, url: str, finish: Finish, expected_bytes: int | None, wait: bool) -> None:
        for name in ("objects", "partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        part = self.folder / "partial" / f"{self._key(url)}.tar"
        with self._owned(url, part, wait) as file:
            if file is None or self.has(url):
                return
            reserved = 0

            def note(known: Known, size: int) -> None:
                nonlocal reserved
                if expected_bytes is not None and known.total not in (None, expected_bytes):
                    raise FetchError(f"{shown(url)}: {known.total} bytes, but its list says {expected_bytes}")
                needed = known.total if known.total is not None else -(-size // RESERVE_BYTES) * RESERVE_BYTES
                if needed > reserved:
                    self._reserve(url, part, known, min(needed, self.limit_bytes))
                    reserved = needed
                elif size == 0:
                    _write_state(part, known, reserved)

            known = _read_state(part)
            if expected_bytes is not None and known.total not in (None, expected_bytes):
                # A part of another version than the list's.
                known = Known()
            download(url, file, self.limit_bytes, self.options, known, note)
            size = os.fstat(file.fileno()).st_size
            if expected_bytes is not None and size != expected_bytes:
                _discard(part)
                raise FetchError(f"{shown(url)}: {size} bytes, but its list says {expected_bytes}")
            target = self._object(url)
            index = target.with_name(target.name + ".index.json")
            try:
                finish(part, index)
            except FetchError:
                _discard(part)
                raise
            self._reserve(url, part, _read_state(part), size + _size(index))
            os.fsync(file.fileno())
            os.replace(part, target)
            _state_path(part).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _owned(self, url: str, part: Path, wait: bool) -> Iterator[BinaryIO | None]:
        """The unfinished file, locked; None if another process has it (wait=False) or has finished it."""
        grown, size = time.monotonic(), -1
        while True:
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found = os.fstat(file.fileno()).st_size
                file.close()
                if not wait or self.has(url):
                    yield None
                    return
                if found != size:
                    grown, size = time.monotonic(), found
                if time.monotonic() - grown > self.options.patience_s:
                    raise FetchError(f"{shown(url)}: another process fetches it and stands still") from None
                time.sleep(_POLL_S)
                continue
            with file:
                if _is_file(file, part):
                    try:
                        yield file
                    finally:
                        if _is_file(file, part) and not os.fstat(file.fileno()).st_size:
                            _discard(part)
                    return
            # It was published or removed between opening and locking.
            if self.has(url):
                yield None
                return

    def _reserve(self, url: str, part: Path, known: Known, needed: int) -> None:
        """Make room for `needed` bytes of this shard by removing those that were read longest ago."""
        with (self.folder / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [entry for entry in self._entries() if entry.path != part]
            total = sum(entry.size for entry in others) + needed
            for entry in sorted(others, key=lambda entry: entry.used):
                if total <= self.limit_bytes:
                    break
                if _remove_unless_locked(entry.path):
                    total -= entry.size
            if total > self.limit_bytes:
                raise NoRoomError(
                    f"{shown(url)}: no room for {needed} bytes in {self.folder}, of which {self.limit_bytes} may be used: "
                    "all the rest is being read or fetched; raise data.cache_gib"
                )
            _write_state(part, known, needed)

    def _entries(self) -> Iterator[_Entry]:
        for path in (self.folder / "objects").glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                yield _Entry(path, stat.st_size + _size(path.with_name(path.name + ".index.json")), stat.st_atime)
        for path in (self.folder / "partial").glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                yield _Entry(path, max(stat.st_size, _reserved(path)), stat.st_mtime)


class NoRoomError(TransientError):
    """All that takes room is in use at the moment."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: float


def _is_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_unless_locked(path: Path) -> bool:
    """Whether it is gone. What cannot be locked or removed counts as in use."""
    try:
        with path.open("r+b") as file:  # NFS and CIFS lock exclusively only what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _discard(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _discard(path: Path) -> None:
    for victim in (path, path.with_name(path.name + ".index.json"), _state_path(path)):
        victim.unlink(missing_ok=True)


def _state_path(part: Path) -> Path:
    return part.with_suffix(".json")


def _write_state(part: Path, known: Known, reserved: int) -> None:
    state = {"validator": known.validator, "total": known.total, "reserved": reserved}
    unfinished = part.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(state), encoding="utf-8")
    os.replace(unfinished, _state_path(part))


def _read_state(part: Path) -> Known:
    try:
        state = json.loads(_state_path(part).read_text(encoding="utf-8"))
        return Known(state["validator"], state["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return Known()


def _reserved(part: Path) -> int:
    try:
        return int(json.loads(_state_path(part).read_text(encoding="utf-8"))["reserved"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
