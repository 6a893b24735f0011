"""Which checkpoint a run began at, kept in its folder: `run.weights.interpolate` must find that very one again.

init.json  {"checkpoint": "/runs/base/checkpoints/step_00000030", "step": 30, "sha256": of its manifest, "only": ["*"]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Self

from parallel.checkpoints import (
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    open_checkpoint,
    published,
    write_atomically,
)
from parallel.checkpoints.manifest import MANIFEST
from parallel.health.claim import FolderError
from run.config import RunConfig
from run.errors import ConfigError
from run.strict_text import TextError, read_json

RECORD = "init.json"


@dataclasses.dataclass(frozen=True)
class Began:
    """checkpoint: its folder at that time; sha256: of its manifest; only: patterns of the names that were taken from there."""

    checkpoint: str
    step: int
    sha256: str
    only: tuple[str, ...] = ("*",)

    @classmethod
    def at(cls, found: Checkpoint, only: tuple[str, ...] = ("*",)) -> Self:
        return cls(str(found.folder.resolve()), found.step, found.sha256, only)

    @classmethod
    def of_run(cls, folder: Path, run: RunConfig, newest: Checkpoint) -> Self | None:
        """run: its configuration, by which `only` is taken where an earlier version has not kept it; newest: a checkpoint of that run. None
        where such a version has kept nothing. Raises ConfigError."""
        if newest.base is not None:
            return cls.at(newest.base)
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            content = read_json(path.read_bytes())
            only = tuple(map(str, content.get("only", run.init_only)))
            return cls(str(content["checkpoint"]), int(content["step"]), str(content["sha256"]), only)
        except (OSError, TextError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}: {error}): copy it from a backup, or remove it"
            ) from error


def keep_beginning(folder: Path, began: Began | None) -> None:
    """Of a run that begins anew; None: at no checkpoint. Raises FolderError."""
    try:
        if began is None:
            (folder / RECORD).unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD, json.dumps(dataclasses.asdict(began)))
    except OSError as error:
        raise FolderError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error


def beginning_in(
    base: Path, tuned: Path, run: RunConfig, newest: Checkpoint
) -> tuple[Checkpoint, tuple[str, ...], str]:
    """Of the run folder `base` the checkpoint that the run in `tuned` began at, patterns of the names that it took, and a line for people
    where that is not known for sure. Raises ConfigError if it is not there, CheckpointError."""
    began = Began.of_run(tuned, run, newest)
    root = base / "checkpoints"
    if began is None:
        found = find_checkpoint(root, run.init_step if isinstance(run.init_step, int) else None)
        note = f"{tuned} keeps no record of the checkpoint it began at: step {found.step} of {base} is taken"
        return found, run.init_only, note
    for folder in published(root):
        try:
            content = (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() == began.sha256:
            return open_checkpoint(folder), began.only, ""
    raise ConfigError(
        f"--base {base} does not hold the checkpoint that {tuned} began at ({began.checkpoint}, sha256 {began.sha256[:12]}): name the run "
        "that does"
    )
