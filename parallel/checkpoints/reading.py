"""Find, verify and restore checkpoints: each rank verifies a share of the files and reads the spans that its own part needs.

With process groups every function that opens or restores is collective, and a failure of one rank is every rank's.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from parallel.checkpoints.fragments import UNREADABLE, CheckpointError, Fragment
from parallel.checkpoints.manifest import MANIFEST, MAX_MANIFEST_BYTES, Base, Manifest, StoredFile, parse
from parallel.checkpoints.saving import latest_step, published, step_of
from parallel.checkpoints.spans import FINAL, Checkpoint, opened
from parallel.checkpoints.together import on_every_rank, on_first_rank, rank_and_world
from parallel.placement import Placement, placement_of

T = TypeVar("T")
MAX_BASES = 8
ATTEMPTS = 20
"""With one checkpoint after another that a training prunes while it is read."""


# -- find ------------------------------------------------------------------------------------------------------------


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Collective. The newest complete checkpoint, the same on all ranks, and what is wrong with newer ones that had to be
    passed over.

    None if nothing was ever saved. Raises CheckpointError if checkpoints exist but none is complete.
    """
    problems: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        folders = on_first_rank(lambda: [folder for folder in published(root) if folder.name not in problems])
        if not folders:
            break
        try:
            return open_checkpoint(folders[0]), list(problems.values())
        except CheckpointError as error:
            if not _is_pruned(folders[0]):
                problems[folders[0].name] = str(error)
    if problems:
        raise CheckpointError("no complete checkpoint: " + "; ".join(problems.values()))
    if folders:
        raise _pruned_too_fast(root)
    return None, []


def _is_pruned(folder: Path) -> bool:
    """Collective. Has the training removed it meanwhile, to keep the newest alone?"""
    return on_first_rank(lambda: not folder.exists())


def find_checkpoint(root: Path, step: int | None = None) -> Checkpoint:
    """Collective. The checkpoint of a step, or the newest complete one; a warning for every newer one that is damaged."""
    if step is not None:
        folder = root / f"step_{step:08d}"
        there = on_first_rank(lambda: sorted(map(step_of, published(root))))
        if step not in there:
            steps = ", ".join(map(str, there)) or "none yet"
            raise CheckpointError(f"{root} has no checkpoint of step {step}; there are {steps}")
        return open_checkpoint(folder)
    checkpoint, problems = newest(root)
    if rank_and_world()[0] == 0:
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
    if checkpoint is None:
        reason = "the run has not been saved yet" if root.parent.is_dir() else "there is no such run"
        raise CheckpointError(f"{root} holds no checkpoint: {reason}")
    return checkpoint


def open_checkpoint(folder: Path, bases: int = MAX_BASES) -> Checkpoint:
    """Collective: each rank verifies a share of the files. bases: how many checkpoints may still build on one another.

    Raises CheckpointError that names the missing or damaged part, on all ranks.
    """
    text = on_first_rank(lambda: _manifest_text(folder / MANIFEST))
    manifest = _manifest(folder, text)
    rank, world = rank_and_world()
    share = sorted(manifest.files.items())[rank::world]

    def verify() -> None:
        for file, stored in share:
            _verify(folder / file, stored, manifest.fragments_of(file))

    on_every_rank(verify)
    base = _base(folder, manifest.base, bases) if manifest.base else None
    return Checkpoint(folder, manifest, hashlib.sha256(text).hexdigest(), base)


def _base(folder: Path, wanted: Base, bases: int) -> Checkpoint:
    """Collective. What the run of `folder` was started from. Raises CheckpointError if it is gone or another one."""
    place = (folder.resolve() / wanted.folder).resolve()
    if not bases:
        raise CheckpointError(f"{folder}: more than {MAX_BASES} runs build on one another: do they form a circle?")
    if not on_first_rank(lambda: (place / MANIFEST).is_file()):
        raise CheckpointError(
            f"{folder} holds what was tuned alone; the rest is in {place}, which is not there: put it back, or a link to it"
        )
    base = open_checkpoint(place, bases - 1)
    if base.sha256 != wanted.sha256:
        raise CheckpointError(
            f"{folder} was tuned from another checkpoint than what is in {place} now: put the one back that it was started from"
        )
    missing = sorted(set(wanted.names) - base.names)
    if missing:
        raise CheckpointError(f"{folder / MANIFEST}: {missing[0]} is to be taken from {place}, which does not hold it")
    return base


def newest_state(root: Path) -> dict[str, Any]:
    """What the checkpoint that was published last says besides tensors, which are not verified; of an older one where its manifest is
    damaged. Raises CheckpointError if no manifest can be read."""
    latest, problems = latest_step(root), []
    # Later ones, which the run went back behind, come last.
    for folder in sorted(published(root), key=lambda folder: (step_of(folder) > latest, -step_of(folder))):
        try:
            return _manifest(folder, _manifest_text(folder / MANIFEST)).state
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError("; ".join(problems) or f"{root} holds no checkpoint")


def _manifest(folder: Path, text: bytes) -> Manifest:
    try:
        return parse(text)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error}") from error


def _manifest_text(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_MANIFEST_BYTES:,} bytes: it is no manifest of this program")
    return text


def _verify(path: Path, stored: StoredFile, fragments: dict[str, int]) -> None:
    try:
        size = path.stat().st_size  # the training may remove it at any time
        if size != stored.bytes:
            raise CheckpointError(f"{path} has {size} bytes, the manifest says {stored.bytes}")
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != stored.sha256:
            raise CheckpointError(f"{path} is damaged: its checksum differs from the manifest's")
        with safe_open(path, framework="pt") as opened:
            keys = set(opened.keys())
            for key, numel in fragments.items():
                if key not in keys:
                    raise CheckpointError(f"{path} does not hold {key}")
                found = opened.get_slice(key)
                if found.get_shape() != [numel] or found.get_dtype() != "F32":
                    raise CheckpointError(
                        f"{path}: {key} is {found.get_dtype()} {found.get_shape()}, the manifest says F32 [{numel}]"
                    )
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


# -- restore ---------------------------------------------------------------------------------------------------------


def restore(checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> None:
    """Collective. Write the checkpoint into the fragments' tensors; they may be cut in any way."""

    def read() -> None:
        with opened(checkpoint) as reader:
            for fragment in fragments:
                for kind, tensor in fragment.tensors.items():
                    reader.fill(tensor, fragment.name, kind, fragment.placement, fragment.start)

    on_every_rank(read)


def load_found(root: Path, step: int | None, module: nn.Module, kind: str = FINAL) -> Checkpoint:
    """Collective. `load_weights` from the checkpoint of a step, or the newest complete one."""
    return with_found(root, step, lambda checkpoint: load_weights(checkpoint, module, kind=kind))[0]


def with_found(root: Path, step: int | None, use: Callable[[Checkpoint], T]) -> tuple[Checkpoint, T]:
    """Collective. The checkpoint of a step, or the newest complete one, and what `use` makes of it, beside a training that saves and
    prunes."""
    for _ in range(ATTEMPTS):
        checkpoint = find_checkpoint(root, step)
        try:
            return checkpoint, use(checkpoint)
        except CheckpointError:
            if not _is_pruned(checkpoint.folder):
                raise
    raise _pruned_too_fast(root)


def _pruned_too_fast(root: Path) -> CheckpointError:
    return CheckpointError(f"{root}: checkpoints go faster than they can be read: raise save_every or keep_checkpoints")


@torch.no_grad()
def load_weights(checkpoint: Checkpoint, module: nn.Module, kind: str = FINAL) -> None:
    """Collective. Weights alone (kind: FINAL or "weight") into a module on any layout. Names must be the same on both sides."""
    own = dict(module.named_parameters())
    missing, unknown = own.keys() - checkpoint.names, checkpoint.names - own.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        )

    load_parts(checkpoint, [(p, name, placement_of(p)) for name, p in own.items()], kind)


@torch.no_grad()
def load_parts(checkpoint: Checkpoint, parts: Iterable[tuple[Tensor, str, Placement]], kind: str = FINAL) -> None:
    """Collective. (tensor to fill, name in the checkpoint, which part of the logical tensor it is), weights alone."""

    def read() -> None:
        with opened(checkpoint) as reader:
            for tensor, name, placement in parts:
                local = tensor if tensor.is_contiguous() else torch.empty_like(tensor).contiguous()
                reader.fill(local.view(-1), name, kind, placement, 0)
                if local is not tensor:
                    tensor.copy_(local)

    on_every_rank(read)
