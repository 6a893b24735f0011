"""What a run has finished, so that the same command goes on where a killed one stopped.

A folder at work holds one hidden file of JSON lines: the plan (options, and sizes and times of the inputs), then one line
for every shard that is complete. A line at the end that was cut off is as if it had not been written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.shards import DatasetError, clear_dataset, is_complete
from data.shards.lock import only_writer

SUMMARY_FILE = "summary.json"
PROGRESS_FILE = ".prepare.jsonl.tmp"  # a name that counts as part of an unfinished data set

Plan = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """One complete shard.

    failures   {reason: [count, first names]}
    token_ids  CLIP ids of its texts
    seconds    since the start of the work, earlier runs included
    """

    split: str
    shard: int
    samples: int
    tar_bytes: int
    failures: dict[str, list[Any]]
    token_ids: tuple[int, ...]
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """A folder that this process alone writes. No shard of it is touched before `begin`.

    done  complete shards that stay
    anew  whether what an earlier command made has to go first
    """

    out: Path
    plan: Plan
    done: dict[tuple[str, int], Done]
    anew: bool = False

    def begin(self, splits: Iterable[str]) -> None:
        """Remove what is made anew, now that the inputs are known to make these splits. Raises DatasetError if others would be lost."""
        if self.anew:
            lost = [split for split in _splits_of(self.out) if split not in set(splits)]
            if lost:
                raise DatasetError(
                    f"{self.out} has split {', '.join(lost)}, which this command does not make; nothing was deleted: name the inputs of "
                    "all splits in one command with --overwrite, or give another --out, or remove the folder"
                )
            # What the inputs were unpacked to stays.
            clear_dataset(self.out, keep={path.name for path in self.out.glob(".*.tar.tmp")})
        _write(self.out / PROGRESS_FILE, self.plan, self.done)

    def add(self, done: Done) -> None:
        self.done[done.split, done.shard] = done
        with (self.out / PROGRESS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(done)) + "\n")


def shard_path(out: Path, split: str, shard: int) -> Path:
    return out / f"{split}-{shard:06d}.tar"


@contextlib.contextmanager
def work_on(out: Path, plan: Plan, overwrite: bool) -> Iterator[Work | None]:
    """The folder, with what an earlier run of the same plan finished; None if it is complete.

    `overwrite` makes a complete folder again, and one begun from another plan; one begun from this plan goes on.
    Raises DatasetError when the folder has shards of another plan, or of another program, and `overwrite` is not given, and when
    another process works on it.
    """
    with only_writer(out):
        progress = out / PROGRESS_FILE
        # As JSON gives it back, for comparison: tuples are lists there.
        plan = json.loads(json.dumps(plan))
        if is_complete(out) and not overwrite:
            _check_same(out, _plan_of_summary(out), plan)
            progress.unlink(missing_ok=True)  # killed at the very end
            print(f"{out}: complete, left alone (--overwrite makes it again)")
            yield None
            return
        begun, done = _read(progress)
        if not overwrite and (is_complete(out) or any(out.glob("*.tar"))):
            made = begun or _plan_of_summary(out)
            _check_same(out, made, plan)
            if made is None:
                raise DatasetError(
                    f"{out} has shards that this program neither made nor began: give another --out, or --overwrite to delete them"
                )
        anew = begun != plan or is_complete(out)
        if anew:
            done = {}
        else:
            done = {key: shard for key, shard in done.items() if _stands(out, shard)}
            if done:
                print(f"{out}: going on, {len(done)} shards are done")
        for leftover in out.glob(".*.tmp"):
            if leftover != progress:
                leftover.unlink()
        try:
            yield Work(out, plan, done, anew)
        finally:
            for leftover in out.glob(".*.tar.tmp"):
                leftover.unlink()


def input_identity(path: Path) -> str:
    """Size and time of a file, or a digest of those of all files of a folder. Raises DatasetError."""
    try:
        status = path.stat()
        if not path.is_dir():
            return f"{status.st_size} bytes, {status.st_mtime_ns}"
        digest, count = hashlib.sha256(), 0
        for folder, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                entry = os.lstat(os.path.join(folder, name))
                digest.update(os.fsencode(os.path.relpath(os.path.join(folder, name), path)))
                digest.update(f"\0{entry.st_size}\0{entry.st_mtime_ns}\0".encode())
                count += 1
        return f"{count} files, {digest.hexdigest()[:32]}"
    except OSError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error


def _splits_of(out: Path) -> list[str]:
    """What the folder has, finished or not."""
    return sorted({path.name.rsplit("-", 1)[0] for path in out.glob("*-*.tar")})


def _check_same(out: Path, begun: Plan | None, plan: Plan) -> None:
    if begun is None or begun == plan:
        return
    for part in plan:
        old, new = begun.get(part), plan[part]
        if isinstance(old, dict) and isinstance(new, dict):
            name = next((name for name in {**old, **new} if old.get(name) != new.get(name)), None)
            old, new, part = old.get(name), new.get(name), name or part
        if old != new:
            raise DatasetError(
                f"{out} was made or begun with other inputs or options ({part}: {old} there, {new} now): "
                "give --overwrite to make it again with all its splits, or choose another folder"
            )


def _plan_of_summary(out: Path) -> Plan | None:
    try:
        return json.loads((out / SUMMARY_FILE).read_bytes())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # made by another program


def _read(progress: Path) -> tuple[Plan | None, dict[tuple[str, int], Done]]:
    plan, done = None, {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        lines = progress.read_text(encoding="utf-8").splitlines()
        plan = json.loads(lines[0])["plan"]
        for line in lines[1:]:
            shard = Done(**json.loads(line))
            done[shard.split, shard.shard] = shard
    return plan, done


def _write(progress: Path, plan: Plan, done: dict[tuple[str, int], Done]) -> None:
    lines = [json.dumps({"plan": plan}), *(json.dumps(dataclasses.asdict(shard)) for shard in done.values())]
    unfinished = progress.with_name(".prepare.new.tmp")
    unfinished.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, progress)


def _stands(out: Path, done: Done) -> bool:
    """Whether the shard and its index are there as they were written."""
    path = shard_path(out, done.split, done.shard)
    try:
        index = json.loads(path.with_name(path.name + ".index.json").read_bytes())
        return path.stat().st_size == index["tar_bytes"] == done.tar_bytes and len(index["samples"]) == done.samples
    except (OSError, ValueError, KeyError, TypeError):
        return False
