"""A checkpoint and the run's files from a store into a folder, so that the training goes on there.

What was cut off is continued: files of the checkpoint lie in `checkpoints/.partial_step_N` until all are there and have the digests of the
manifest. The run's files come before, the name in `checkpoints/latest` last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import yaml

from clusters.store.names import folder_name, is_record
from clusters.store.place import Place, StoreError
from clusters.store.stored import Stored, look, sizes_by_step
from clusters.store.upload import EVENTS, THREADS, first_line, stored_first_line
from parallel.checkpoints import published, write_atomically
from parallel.checkpoints.files import sync_folder, write_durably
from parallel.checkpoints.manifest import MANIFEST, StoredFile
from parallel.checkpoints.saving import LATEST, partial_folder, replaced_folder, step_of
from parallel.health.claim import FolderClaim, FolderError
from run.config_file import CONFIG
from run.errors import ConfigError

MAX_RECORDS = 100_000
MAX_CONFIG_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""Of the disk, that stay free."""


class DamagedError(Exception):
    """A checkpoint of the store is not what its manifest says."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a download writes into, and whom it tells."""

    run: Path
    place: Place
    tell: Callable[[str], None]

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"


def download(place: Place, run: Path, wanted: int | str, tell: Callable[[str], None]) -> int:
    """wanted: a step, "best" or "newest". -> the step that is there now.

    Raises FolderError where somebody trains in the folder, or it holds another run or a later step; ConfigError where the store does not
    have what is wanted; StoreError where it cannot be read, or nothing in it is sound.
    """
    target = Target(run, place, tell)
    sizes = sizes_by_step(place)
    if not sizes:
        raise ConfigError(
            f"{place.url} holds no checkpoint: name the place of one run, as `store upload --to` was given it"
        )
    found = [look(place, step, its) for step, its in sizes.items()]
    candidates = _candidates(place, found, wanted, tell)
    existed = run.exists()
    claim = FolderClaim(run)
    try:
        _check_folder(target, candidates[0])
        if _is_there(target, candidates[0]):
            return candidates[0].step
        _check_room(run, sum(file.bytes for file in _files(candidates[0]).values()))
        _records(target, claim)
        step = _first_sound(target, claim, candidates, wanted)
    finally:
        claim.release()
        if not existed:
            with contextlib.suppress(OSError):
                run.rmdir()  # where nothing has come
    return step


def _candidates(place: Place, found: list[Stored], wanted: int | str, tell: Callable[[str], None]) -> list[Stored]:
    """Complete ones, in the order in which they are tried."""
    complete = [stored for stored in found if not stored.problem]
    steps = ", ".join(str(stored.step) for stored in complete) or "none"
    problems = {stored.step: stored.problem for stored in found if stored.problem}
    if wanted == "newest":
        for step, problem in problems.items():
            if not complete or step > complete[0].step:
                tell(f"warning: step {step} of {place.url} does not count: {problem}")
        if not complete:
            raise StoreError(f"{place.url} holds no complete checkpoint")
        return complete
    if wanted == "best":
        best = complete[0].best_step if complete else None
        if best is None or best < 0:
            raise ConfigError(
                f"{place.url} does not know its best checkpoint: train with evaluate.keep_best, or name a step; complete are {steps}"
            )
        wanted = best
    chosen = [stored for stored in complete if stored.step == wanted]
    if not chosen:
        reason = f": {problems[int(wanted)]}" if wanted in problems else ""
        raise ConfigError(f"{place.url} has no complete checkpoint of step {wanted}{reason}; complete are {steps}")
    return chosen


def _check_folder(target: Target, chosen: Stored) -> None:
    """Nothing that is only here may be lost. Raises FolderError."""
    mine, there = first_line(target.run / EVENTS), stored_first_line(target.place)
    here = published(target.checkpoints)
    if (mine and there and mine != there) or (here and not mine):
        raise FolderError(f"{target.run} holds another run than {target.place.url}: choose another --run")
    if here and step_of(here[0]) > chosen.step:
        raise FolderError(
            f"{target.run} is at step {step_of(here[0])} already, later than step {chosen.step} of {target.place.url}: train on from "
            "there, or choose another --run"
        )


def _check_room(run: Path, needed: int) -> None:
    there = sum(path.stat().st_size for path in run.glob("checkpoints/.partial_step_*/*"))
    free = shutil.disk_usage(run).free
    if needed - there + SPARE_BYTES > free:
        raise FolderError(
            f"{run} has room for {free:,} bytes, and {needed:,} are to come: make room, or choose another --run"
        )


def _records(target: Target, claim: FolderClaim) -> None:
    """The run's files besides checkpoints."""
    found = {name: size for name, size in target.place.find().items() if not name.startswith("checkpoints/")}
    if len(found) > MAX_RECORDS:
        raise StoreError(
            f"{target.place.url} holds {len(found):,} files besides checkpoints, more than {MAX_RECORDS:,}"
        )
    taken = {name: size for name, size in found.items() if is_record(name)}
    for name in sorted(found.keys() - taken.keys())[:3]:
        target.tell(f"warning: {name[:200]!r} of {target.place.url} is no file of a run and stays there")
    _check_room(target.run, sum(taken.values()))
    with _pool() as pool:
        futures = [pool.submit(_record, target, name, size) for name, size in taken.items()]
        _wait(futures, claim)
    if _allows_commands(target.run / CONFIG):
        target.tell(
            f"warning: {target.run / CONFIG} allows commands (data.allow_pipe), which evaluate.py --run would start: read it first"
        )


def _allows_commands(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            data = yaml.safe_load(file.read(MAX_CONFIG_BYTES)).get("data")
        return bool(isinstance(data, dict) and data.get("allow_pipe"))
    except (OSError, yaml.YAMLError, AttributeError, RecursionError):
        return False


def _record(target: Target, name: str, size: int) -> None:
    """In place of what is there, once it is whole. It grows in the store while a run goes on."""
    path = target.run / name
    _refuse_links(target.run, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            target.place.fetch(name, file, limit_bytes=2 * size + (1 << 20))
        os.replace(temporary, path)
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_links(run: Path, path: Path) -> None:
    """A link in the folder would lead what comes elsewhere."""
    for parent in path.parents:
        if parent == run:
            return
        if parent.is_symlink():
            raise FolderError(f"{parent} is a link: put the folder there itself, or choose another --run")


def _first_sound(target: Target, claim: FolderClaim, candidates: list[Stored], wanted: int | str) -> int:
    for stored in candidates:
        try:
            _checkpoint(target, claim, stored)
            return stored.step
        except DamagedError as error:
            line = f"step {stored.step} of {target.place.url} is damaged: {error}"
            if wanted != "newest" or stored is candidates[-1]:
                raise StoreError(line) from error
            target.tell(f"warning: {line}; taking an earlier one")
    raise AssertionError("no candidate")


def _checkpoint(target: Target, claim: FolderClaim, stored: Stored) -> None:
    """Raises DamagedError."""
    assert stored.text is not None
    root, start = target.checkpoints, time.monotonic()
    partial, final = partial_folder(root, stored.step), root / f"step_{stored.step:08d}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)
        with _pool() as pool:
            files = _files(stored).items()
            _wait([pool.submit(_file, target, stored.step, name, file, partial / name) for name, file in files], claim)
        for extra in [path for path in partial.iterdir() if path.name not in _files(stored)]:
            extra.unlink()
        write_durably(partial / MANIFEST, [stored.text])
        sync_folder(partial)
        if final.exists():  # damaged
            shutil.rmtree(replaced_folder(final), ignore_errors=True)
            os.replace(final, replaced_folder(final))
        os.replace(partial, final)
        sync_folder(root)
        write_atomically(root / LATEST, final.name)
        shutil.rmtree(replaced_folder(final), ignore_errors=True)
    except OSError as error:
        raise FolderError(f"{root}: {error.strerror or error}") from error
    count, taken = sum(file.bytes for file in _files(stored).values()), time.monotonic() - start
    target.tell(f"downloaded {final}: {len(_files(stored))} files, {count:,} bytes in {taken:.1f} s")


def _files(stored: Stored) -> dict[str, StoredFile]:
    assert stored.manifest is not None
    return stored.manifest.files


def _is_there(target: Target, stored: Stored) -> bool:
    """Whole and sound; the run's files, which come first, are then there too, and may have grown since."""
    final = target.checkpoints / f"step_{stored.step:08d}"
    try:
        same = (final / MANIFEST).read_bytes() == stored.text and all(
            _digest(final / name) == file.sha256 for name, file in _files(stored).items()
        )
    except OSError:
        return False
    if same:
        write_atomically(target.checkpoints / LATEST, final.name)
        target.tell(f"{final} is there already")
    return same


def _file(target: Target, step: int, name: str, file: StoredFile, path: Path) -> None:
    """Whole and with its digest. What a download before this one has left is continued, and fetched anew if it turns out to be another's.
    Raises DamagedError."""
    had = path.stat().st_size if path.exists() else 0
    for _ in range(2 if had else 1):
        if had > file.bytes:
            path.unlink()
            had = 0
        with path.open("r+b" if had else "w+b") as opened:
            if had != file.bytes:
                target.place.fetch(f"{folder_name(step)}/{name}", opened, file.bytes)
            opened.flush()
            os.fsync(opened.fileno())
        if path.stat().st_size == file.bytes and _digest(path) == file.sha256:
            return
        path.unlink()
        had = 0
    raise DamagedError(f"the checksum of {name} differs from the manifest's")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """What has not begun when something fails is left."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(futures: list, claim: FolderClaim) -> None:
    """Raises what the first of them raises; others see meanwhile that the folder is in use."""
    rest = set(futures)
    while rest:
        done, rest = wait(rest, timeout=1.0, return_when="FIRST_EXCEPTION")
        if taken_by := claim.beat():
            raise FolderError(f"the folder was taken by {taken_by} meanwhile")
        for future in done:
            future.result()
