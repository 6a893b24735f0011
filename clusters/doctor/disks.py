"""Speed, room and clock of folders."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from clusters.doctor.finding import Finding, Verdict, failed, least, ok, warning

GIB = 1 << 30
WRITTEN = 64 << 20
CHUNK = 4 << 20
SLOW_MB_PER_S, TOO_SLOW_MB_PER_S = 100.0, 5.0
CLOCK_S, WRONG_CLOCK_S = 2.0, 60.0
"""File servers and object stores refuse requests by clocks that are minutes off; seconds confuse who reads logs."""


def existing(folder: Path) -> Path:
    """The folder, or the one above it that is there: a run would make the rest."""
    folder = Path(os.path.abspath(folder))
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))


def check_room(name: str, folder: Path, needed_gib: float, what: str) -> list[Finding]:
    """what: takes the needed room, for the remedy."""
    place = existing(folder)
    if not place.is_dir():
        return [failed(f"{name} folder", f"{place} is a file", "a folder", f"choose another place for {name}")]
    try:
        with _trial(place) as path:
            path.touch()
    except OSError as error:
        return [
            failed(
                f"{name} folder",
                f"{place}: {error.strerror}",
                "a folder to write to",
                "mend its rights, or choose another",
            )
        ]
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    found = [
        least(f"{name} room", usage.free / GIB, needed_gib, needed_gib / 2, "GiB free", f"make room in {place}: {what}")
    ]
    if inodes.f_files and inodes.f_favail < 10_000:
        found.append(
            failed(f"{name} files", f"{inodes.f_favail} more in {place}", "10,000", "remove small files there")
        )
    return found


def check_speed(name: str, folder: Path, num_bytes: int = WRITTEN) -> list[Finding]:
    """Writes a file to the disk and reads it back from there."""
    place = existing(folder)
    try:
        with _trial(place) as path:
            write_s, read_s = _write_and_read(path, num_bytes)
    except OSError as error:
        return [failed(f"{name} speed", f"{place}: {error.strerror}", "", "mend its rights, or choose another")]
    written, read = num_bytes / write_s / 1e6, num_bytes / read_s / 1e6
    found = f"writes {written:,.0f} MB/s, reads {read:,.0f} MB/s in {place}"
    slowest = min(written, read)
    if slowest >= SLOW_MB_PER_S:
        return [ok(f"{name} speed", found)]
    weak = failed if slowest < TOO_SLOW_MB_PER_S else warning
    remedy = "choose a faster disk; save_async=true hides slow writing behind the training"
    return [weak(f"{name} speed", found, f"{SLOW_MB_PER_S:g} MB/s", remedy)]


def check_file_clock(name: str, folder: Path, now_s: float | None = None) -> list[Finding]:
    """The file system's clock against this machine's. now_s: seconds of the latter, for tests."""
    try:
        with _trial(existing(folder)) as path:
            before = time.time() if now_s is None else now_s
            path.touch()
            after = time.time() if now_s is None else now_s
            written = path.stat().st_mtime
    except OSError as error:
        return [
            failed(f"{name} clock", error.strerror or str(error), "", "mend the folder's rights, or choose another")
        ]
    # Systems note times by their last tick, which may lie some milliseconds back.
    off = max(before - written, written - after, 0.0)
    return [clock_finding(f"{name} clock", off, "of the file server")]


def clock_finding(name: str, off_s: float, whose: str) -> Finding:
    """off_s: seconds between two clocks, of which one is this machine's."""
    verdict: Verdict = "ok" if off_s < CLOCK_S else "warning" if off_s < WRONG_CLOCK_S else "FAILED"
    found = f"{off_s:.1f} s off that of this machine"
    if verdict == "ok":
        return ok(name, found)
    return Finding(
        name,
        verdict,
        found,
        f"less than {CLOCK_S:g} s",
        f"set the clock {whose} or this one: chronyc makestep, timedatectl set-ntp true",
    )


def check_marker(marker: Path) -> list[Finding]:
    """marker: a file that another machine has just written into the folder of runs."""
    if marker.exists():
        return [ok("runs shared", f"{marker.parent} is that of the first machine")]
    remedy = "put runs= on a file system that all machines mount at the same place"
    return [
        failed(
            "runs shared",
            f"a file that the first machine wrote into {marker.parent} is not there",
            "one folder of runs",
            remedy,
        )
    ]


@contextlib.contextmanager
def placed_marker(folder: Path) -> Iterator[Path | None]:
    """A file for other machines to look for; None where none can be written."""
    path = existing(folder) / f".doctor-{secrets.token_hex(8)}"
    try:
        path.touch()
    except OSError:
        yield None
        return
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write_and_read(path: Path, num_bytes: int) -> tuple[float, float]:
    """-> seconds to write, on the disk and not in memory, and to read from there."""
    content = os.urandom(CHUNK)
    begin = time.perf_counter()
    with path.open("w+b", buffering=0) as file:
        path.unlink()  # nothing stays behind, however this ends
        for _ in range(num_bytes // CHUNK):
            file.write(content)
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        opened = time.perf_counter()
        while file.read(CHUNK):
            pass
        return written - begin, max(time.perf_counter() - opened, 1e-9)


@contextlib.contextmanager
def _trial(folder: Path) -> Iterator[Path]:
    path = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
