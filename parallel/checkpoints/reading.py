"""Find, verify and restore checkpoints: each rank verifies a share of the files and reads the spans that its own part needs.

With process groups every function that opens or restores is collective, and a failure of one rank is every rank's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from parallel.checkpoints.fragments import CheckpointError, Fragment
from parallel.checkpoints.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, StoredFile, parse
from parallel.checkpoints.resharding import Run, copy_overlap
from parallel.checkpoints.saving import published, step_of
from parallel.checkpoints.together import on_every_rank, on_first_rank, rank_and_world
from parallel.placement import Placement, placement_of

MAX_MAPPED_BYTES = 1 << 26
"""Files are mapped into memory to be read; after so many bytes they are opened anew, which lets go of the pages."""
ATTEMPTS = 20
"""With one checkpoint after another that a training prunes while it is read."""
LARGE_PAGE = 1 << 21
"""What the kernel may map for a read of one number."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened, verified checkpoint."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def state(self) -> dict[str, Any]:
        return self.manifest.state

    @property
    def names(self) -> set[str]:
        return set(self.manifest.tensors)

    def logical(self, name: str, kind: str) -> Tensor:
        """One whole tensor in fp32."""
        tensor = self.manifest.tensors.get(name)
        whole = torch.empty(() if tensor is None else tensor.shape)
        with _opened(self) as reader:
            reader.fill(whole.view(-1), name, kind, Placement(tuple(whole.shape)), 0)
        return whole


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


def open_checkpoint(folder: Path) -> Checkpoint:
    """Collective: each rank verifies a share of the files. Raises CheckpointError that names the missing or damaged part, on all
    ranks."""
    text = on_first_rank(lambda: _manifest_text(folder / MANIFEST))
    try:
        manifest = parse(text)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error}") from error
    rank, world = rank_and_world()
    share = sorted(manifest.files.items())[rank::world]

    def verify() -> None:
        for file, stored in share:
            _verify(folder / file, stored, manifest.fragments_of(file))

    on_every_rank(verify)
    return Checkpoint(folder, manifest)


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
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != stored.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, the manifest says {stored.bytes}")
    try:
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
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


# -- restore ---------------------------------------------------------------------------------------------------------


def restore(checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> None:
    """Collective. Write the checkpoint into the fragments' tensors; they may be cut in any way."""

    def read() -> None:
        with _opened(checkpoint) as reader:
            for fragment in fragments:
                for kind, tensor in fragment.tensors.items():
                    reader.fill(tensor, fragment.name, kind, fragment.placement, fragment.start)

    on_every_rank(read)


def load_found(root: Path, step: int | None, module: nn.Module, only: tuple[str, ...] = ("*",)) -> Checkpoint:
    """Collective. `load_weights` from the checkpoint of a step, or the newest complete one, beside a training that saves and prunes."""
    for _ in range(ATTEMPTS):
        checkpoint = find_checkpoint(root, step)
        try:
            load_weights(checkpoint, module, only)
            return checkpoint
        except CheckpointError:
            if not _is_pruned(checkpoint.folder):
                raise
    raise _pruned_too_fast(root)


def _pruned_too_fast(root: Path) -> CheckpointError:
    return CheckpointError(f"{root}: checkpoints go faster than they can be read: raise save_every or keep_checkpoints")


@torch.no_grad()
def load_weights(checkpoint: Checkpoint, module: nn.Module, only: tuple[str, ...] = ("*",)) -> None:
    """Collective. Weights alone into a module on any layout. Names must be the same on both sides, or with `only` those of
    the module that match a pattern must be in the checkpoint."""
    own = dict(module.named_parameters())
    for pattern in only:
        if not fnmatch.filter(own, pattern):
            raise CheckpointError(
                f"no parameter of the model matches {pattern!r}, which is to be taken from {checkpoint.folder}"
            )
    if only != ("*",):
        own = {name: own[name] for pattern in only for name in fnmatch.filter(own, pattern)}
    missing = own.keys() - checkpoint.names
    unknown = checkpoint.names - own.keys() if only == ("*",) else set()
    if missing or unknown:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        )

    def read() -> None:
        with _opened(checkpoint) as reader:
            for name, parameter in own.items():
                local = parameter if parameter.is_contiguous() else torch.empty_like(parameter).contiguous()
                reader.fill(local.view(-1), name, "weight", placement_of(parameter), 0)
                if local is not parameter:
                    parameter.copy_(local)

    on_every_rank(read)


@contextlib.contextmanager
def _opened(checkpoint: Checkpoint) -> Iterator[_Reader]:
    reader = _Reader(checkpoint)
    try:
        yield reader
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.folder} cannot be read: {error}") from error
    finally:
        reader.close()


class _Reader:
    """Reads spans of the checkpoint's files, each opened once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder, self._tensors = checkpoint.folder, checkpoint.manifest.tensors
        self._files: dict[str, Any] = {}
        self._mapped = 0

    def fill(self, out: Tensor, name: str, kind: str, placement: Placement, start: int) -> None:
        """`out` [numel] takes elements from `start` on of the flattened part that the placement leaves."""
        tensor = self._tensors.get(name)
        if tensor is not None and tensor.kinds == ("weight",) and kind != "weight":
            raise CheckpointError(
                f"{self._folder} has no {kind} of {name}, which was locked when it was saved: lock it again, or begin another "
                "run with init= the folder of this one"
            )
        if tensor is None or kind not in tensor.kinds:
            raise CheckpointError(f"{self._folder} has no {kind} of {name}")
        if tensor.shape != placement.shape:
            raise CheckpointError(
                f"{self._folder}: {name} has shape {tensor.shape}, the model's is {tuple(placement.shape)}"
            )
        wanted = Run(placement, start, start + out.numel())
        assert wanted.stop <= math.prod(placement.local_shape), (name, wanted)
        for stored in tensor.fragments:
            run = Run(stored.placement(tensor.shape), stored.start, stored.start + stored.numel)
            file, key = stored.file, f"{kind}/{name}"
            copy_overlap(lambda at, numel, file=file, key=key: self._read(file, key, at, numel), run, wanted, out)  # type: ignore[misc]

    def _read(self, file: str, key: str, start: int, numel: int) -> Tensor:
        """A view of the mapped file, good until the next call."""
        if self._mapped > MAX_MAPPED_BYTES:
            self.close()
        if file not in self._files:
            self._files[file] = safe_open(self._folder / file, framework="pt")
        self._mapped += max(4 * numel, LARGE_PAGE)
        return self._files[file].get_slice(key)[start : start + numel]

    def close(self) -> None:
        self._files.clear()
        self._mapped = 0
