"""Which files of a run travel, and which names from a store are taken."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from parallel.checkpoints.manifest import MANIFEST
from parallel.checkpoints.saving import FOLDER
from parallel.health.claim import IN_USE

CHECKPOINTS = "checkpoints"
UPLOADING = "uploading"
"""In a checkpoint's folder of the store while it is unfinished."""
HERE_ALONE = (IN_USE, "health", CHECKPOINTS)
"""Of this machine and this moment; checkpoints go their own way."""
PART = re.compile(r"[^\x00-\x1f\x7f/\\.\ud800-\udfff][^\x00-\x1f\x7f/\\\ud800-\udfff]{0,199}")
"""One part of a path. A dot does not begin it: such files are unfinished ones of ours, and '..' leaves the folder. Bytes that are no UTF-8
make no name in a store."""
MAX_DEPTH = 8


def is_record(name: str) -> bool:
    """Is a path, relative to a run's folder, one of a file that belongs to the run besides its checkpoints?"""
    parts = name.split("/")
    return len(parts) <= MAX_DEPTH and parts[0] not in HERE_ALONE and all(PART.fullmatch(part) for part in parts)


def records(run: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the run's files besides its checkpoints; what lies behind links is not the run's. The training may rename and remove
    them meanwhile."""
    found = []
    for folder, folders, files in os.walk(run):
        if Path(folder) == run:
            folders[:] = set(folders) - set(HERE_ALONE)
        found += [Path(folder, name) for name in files]
    for path in sorted(found):
        name = path.relative_to(run).as_posix()
        with contextlib.suppress(FileNotFoundError):
            if is_record(name) and stat.S_ISREG(path.lstat().st_mode):
                yield name, path


def folder_name(step: int) -> str:
    """Of a step's checkpoint, from the run's place."""
    return f"{CHECKPOINTS}/step_{step:08d}"


def manifest_name(step: int) -> str:
    return f"{folder_name(step)}/{MANIFEST}"


def step_and_file(name: str) -> tuple[int, str] | None:
    """Of a path below the run's place that lies in a checkpoint: its step and its name there."""
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != CHECKPOINTS or not FOLDER.fullmatch(parts[1]):
        return None
    step = int(parts[1].removeprefix("step_"))
    return (step, parts[2]) if parts[1] == f"step_{step:08d}" else None
