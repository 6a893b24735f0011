"""Save a step: begin (all ranks), write (each rank alone), publish (all ranks)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoints.files import sync_folder, write_atomically, write_durably, write_tensors
from parallel.checkpoints.fragments import CheckpointError, Fragment
from parallel.checkpoints.manifest import MANIFEST, Base, RankPart, StoredFragment, StoredTensor, dump, merge
from parallel.checkpoints.together import on_every_rank, on_first_rank, rank_and_world, to_first_rank

LATEST = "latest"
IS_BASE = "is_base"
"""A file in a checkpoint that tuned runs build on: it is not removed."""
FOLDER = re.compile(r"step_(\d{8,})")


@dataclasses.dataclass(frozen=True)
class Published:
    """A complete checkpoint; `bytes` of all its files."""

    folder: Path
    step: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Owned:
    """What this rank writes: the manifest's entries of its file, and flat tensors by key in the file's order."""

    file: str
    entries: dict[str, StoredTensor]
    tensors: deque[tuple[str, Tensor]]

    def snapshot(self) -> Owned:
        """Copies in host memory, which later steps do not change."""
        copies = ((key, tensor.detach().to("cpu", torch.float32, copy=True)) for key, tensor in self.tensors)
        return Owned(self.file, self.entries, deque(copies))


def save(
    root: Path,
    step: int,
    fragments: Iterable[Fragment],
    state: dict[str, Any],
    keep: int = 2,
    base: Base | None = None,
    spared: int = -1,
) -> Published:
    """Collective: all ranks call it at the same step. base: what is not written, since it is there. spared: a step that stays besides
    the newest `keep`.

    `state` is JSON; the first rank's is stored. Raises CheckpointError on all ranks if one cannot write its file, or if the
    fragments of all ranks do not cover every tensor exactly once; then the checkpoints before stay as they are. So do they where
    the new one is complete and its name cannot be put on the disk: also a CheckpointError.
    """
    begin(root, step)
    part: RankPart | CheckpointError
    try:
        part = write(root, step, owned(fragments, base))
    except CheckpointError as error:
        part = error
    return publish(root, step, part, state, keep, base, spared)


def owned(fragments: Iterable[Fragment], base: Base | None = None) -> Owned:
    elsewhere = frozenset(base.names) if base else frozenset()
    file = f"rank_{rank_and_world()[0]:05d}.safetensors"
    entries: dict[str, StoredTensor] = {}
    tensors: deque[tuple[str, Tensor]] = deque()
    for fragment in fragments:
        if not fragment.owned or fragment.name in elsewhere:
            continue
        assert fragment.name not in entries, fragment.name
        cuts = tuple((cut.dim, cut.axis, cut.index, cut.count) for cut in fragment.placement.cuts)
        stored = StoredFragment(cuts, file, fragment.start, fragment.numel)
        kinds = tuple(sorted(fragment.tensors))
        entries[fragment.name] = StoredTensor(fragment.placement.shape, kinds, (stored,))
        tensors.extend((f"{kind}/{fragment.name}", fragment.tensors[kind]) for kind in kinds)
    return Owned(file, entries, tensors)


def begin(root: Path, step: int) -> None:
    """Collective: an empty folder for the step's files, and none of saves that were cut off."""
    steps = on_every_rank(lambda: step)
    if len(set(steps)) > 1:
        called = ", ".join(f"rank {rank} step {its}" for rank, its in enumerate(steps))
        raise CheckpointError(f"{root}: ranks save different steps, nothing was written: {called[:500]}")

    def prepare() -> None:
        try:
            for leftover in (*root.glob(".partial_step_*"), *root.glob(".replaced_step_*")):
                shutil.rmtree(leftover, ignore_errors=True)
            partial_folder(root, step).mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"{root} cannot take a checkpoint: {error}") from error

    on_first_rank(prepare)


def write(root: Path, step: int, part: Owned) -> RankPart:
    """This rank's file. No collectives: it may run in any thread."""
    stored = write_tensors(partial_folder(root, step) / part.file, part.tensors)
    return RankPart(part.file, stored, part.entries)


def publish(
    root: Path,
    step: int,
    part: RankPart | CheckpointError,
    state: dict[str, Any],
    keep: int,
    base: Base | None = None,
    spared: int = -1,
) -> Published:
    """Collective: the manifest from all ranks' parts, then the rename that makes the checkpoint count."""
    # As text, since only plain data travels between ranks.
    parts = to_first_rank(str(part) if isinstance(part, CheckpointError) else part)
    return on_first_rank(lambda: _publish(root, step, parts, state, keep, base, spared))


def _publish(
    root: Path, step: int, parts: list[RankPart | str], state: dict[str, Any], keep: int, base: Base | None, spared: int
) -> Published:
    partial, final = partial_folder(root, step), root / f"step_{step:08d}"
    old = replaced_folder(final)
    try:
        errors = [part for part in parts if isinstance(part, str)]
        if errors:
            raise CheckpointError("; ".join(errors[:5]))
        manifest = merge((part for part in parts if not isinstance(part, str)), step, state, base)
        text = dump(manifest)
        write_durably(partial / MANIFEST, [text])
        sync_folder(partial)
        if final.exists():  # a damaged one that the run went back behind
            os.replace(final, old)
        os.replace(partial, final)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # make room
        raise CheckpointError(
            f"step {step} was not saved: {error}; the checkpoints before it in {root} are as they were"
        ) from error
    try:
        for folder in (root, root.parent):
            sync_folder(folder)
        write_atomically(root / LATEST, final.name)
    except OSError as error:
        raise CheckpointError(
            f"step {step} is complete in {final} and the run can go on from it, but it may not outlive a crash of the machine, and "
            f"{root / LATEST} may name an older one: {error}"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
    # Later steps are those that the run went back behind. They are not counted: this one must stay.
    for folder in [p for p in published(root) if step_of(p) <= step][keep:]:
        if step_of(folder) != spared and not (folder / IS_BASE).exists():
            _remove(folder)
    return Published(final, step, len(text) + sum(file.bytes for file in manifest.files.values()))


def _remove(folder: Path) -> None:
    """All at once for those who read beside the training: a folder without some of its files would look damaged."""
    gone = replaced_folder(folder)
    with contextlib.suppress(OSError):
        os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def replaced_folder(folder: Path) -> Path:
    """Where it lies until its files are removed."""
    return folder.with_name(f".replaced_{folder.name}")


def published(root: Path) -> list[Path]:
    """Published folders, newest first."""
    found = (p for p in root.glob("step_*") if FOLDER.fullmatch(p.name) and (p / MANIFEST).is_file())
    return sorted(found, key=step_of, reverse=True)


def latest_step(root: Path) -> int:
    """Of the checkpoint that was published last, -1 where there is none. Later steps are those that the run went back behind, as a damaged
    one makes it do."""
    folders = published(root)
    try:
        name = (root / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    return next((step_of(folder) for folder in folders if folder.name == name), step_of(folders[0]) if folders else -1)


def mark_as_base(folder: Path) -> None:
    """Ask the run that the checkpoint is of not to remove it; where its folder cannot be written nobody does."""
    with contextlib.suppress(OSError):
        (folder / IS_BASE).touch()


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def partial_folder(root: Path, step: int) -> Path:
    return root / f".partial_step_{step:08d}"
