"""Checkpoints of logical tensors by global name, in safetensors and JSON alone.

    step_00000200/  manifest.json            what must be there: shapes, fragments, checksums, the run's state
                    rank_00000.safetensors   the fragments that rank 0 owns: "<kind>/<name>", flat fp32
                    ...
    latest                                   name of the newest published folder

A fragment is a slice [start, start + numel) of the flattened part that a placement's cuts leave of the logical tensor.
Every rank writes what it owns; nothing is gathered. A folder is written under a temporary name, synced and renamed, so a
published folder is complete; only then `latest` moves and old folders are pruned.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from parallel.placement import Cut, Placement, placement_of

VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another model; the message names the part."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """A slice of one parameter's flattened local part; `tensors` are views [numel] by kind. Not `owned`: a copy of
    what another rank writes."""

    name: str
    placement: Placement
    start: int
    owned: bool
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return self.tensors["weight"].numel()


# -- save ------------------------------------------------------------------------------------------------------------


def save(root: Path, step: int, fragments: Iterable[Fragment], state: dict[str, Any], keep: int = 2) -> Path:
    """Collective: all ranks call it at the same step. Returns the published folder.

    `state` is JSON; the first rank's is stored. Raises CheckpointError if the fragments of all ranks do not cover every
    tensor exactly once.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    final = root / f"step_{step:08d}"
    partial = root / f".partial_step_{step:08d}"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(world)

    file = f"rank_{rank:05d}.safetensors"
    entries: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for fragment in fragments:
        if not fragment.owned:
            continue
        entries[fragment.name] = {
            "shape": list(fragment.placement.shape),
            "cuts": [[cut.dim, cut.axis, cut.index, cut.count] for cut in fragment.placement.cuts],
            "file": file,
            "start": fragment.start,
            "numel": fragment.numel,
            "kinds": sorted(fragment.tensors),
        }
        for kind, tensor in fragment.tensors.items():
            tensors[f"{kind}/{fragment.name}"] = tensor.float().cpu().contiguous()
    save_file(tensors, partial / file)
    _sync(partial / file)
    part = {
        "entries": entries,
        "file": file,
        "bytes": (partial / file).stat().st_size,
        "sha256": _sha256(partial / file),
    }

    parts: list[Any] = [None] * world
    if world > 1:
        dist.gather_object(part, parts if rank == 0 else None, dst=0)
    else:
        parts = [part]
    if rank == 0:
        manifest = _merge(parts, step, state)
        _check_coverage(manifest, final)
        (partial / MANIFEST).write_text(json.dumps(manifest))
        _sync(partial / MANIFEST)
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(root)
        write_atomically(root / LATEST, final.name)
        _prune(root, keep)
    _barrier(world)
    return final


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old text or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _merge(parts: list[Any], step: int, state: dict[str, Any]) -> dict[str, Any]:
    tensors: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, entry in part["entries"].items():
            tensor = tensors.setdefault(name, {"shape": entry["shape"], "kinds": entry["kinds"], "fragments": []})
            if (tensor["shape"], tensor["kinds"]) != (entry["shape"], entry["kinds"]):
                raise CheckpointError(f"ranks disagree about {name}: {tensor['shape']} and {entry['shape']}")
            tensor["fragments"].append({key: entry[key] for key in ("cuts", "file", "start", "numel")})
    files = {part["file"]: {"bytes": part["bytes"], "sha256": part["sha256"]} for part in parts}
    return {"version": VERSION, "step": step, "tensors": tensors, "files": files, "state": state}


def _check_coverage(manifest: dict[str, Any], folder: Path) -> None:
    """Every element of every logical tensor belongs to exactly one fragment."""
    for name, tensor in manifest["tensors"].items():
        covered = 0
        for placement, fragments in _by_placement(tensor).items():
            end = 0
            for fragment in fragments:
                if fragment["start"] != end:
                    raise CheckpointError(
                        f"{folder}: {name} has a gap or an overlap at element {end} of {placement.cuts}"
                    )
                end += fragment["numel"]
            if end != math.prod(placement.local_shape):
                raise CheckpointError(f"{folder}: {name} ends at element {end} of {math.prod(placement.local_shape)}")
            covered += end
        if covered != math.prod(tensor["shape"]):
            raise CheckpointError(
                f"{folder}: {name} has {covered} of {math.prod(tensor['shape'])} elements: a rank's part is missing"
            )


def _by_placement(tensor: dict[str, Any]) -> dict[Placement, list[dict[str, Any]]]:
    parts: dict[Placement, list[dict[str, Any]]] = {}
    for fragment in sorted(tensor["fragments"], key=lambda f: f["start"]):
        cuts = tuple(Cut(dim, axis, index, count) for dim, axis, index, count in fragment["cuts"])
        parts.setdefault(Placement(tuple(tensor["shape"]), cuts), []).append(fragment)
    return parts


def _prune(root: Path, keep: int) -> None:
    for folder in published(root)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


# -- find and read ---------------------------------------------------------------------------------------------------


def published(root: Path) -> list[Path]:
    """Published folders, newest first."""
    return sorted((p for p in root.glob("step_*") if (p / MANIFEST).is_file()), reverse=True)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened, verified checkpoint."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def state(self) -> dict[str, Any]:
        return self.manifest["state"]

    @property
    def names(self) -> set[str]:
        return set(self.manifest["tensors"])

    def logical(self, name: str, kind: str) -> Tensor:
        """One whole tensor in fp32, put together from its fragments."""
        tensor = self.manifest["tensors"].get(name)
        if tensor is None or kind not in tensor["kinds"]:
            raise CheckpointError(f"{self.folder} has no {kind} of {name}")
        whole = torch.empty(tensor["shape"])
        for placement, fragments in _by_placement(tensor).items():
            parts = [self._read(fragment["file"], f"{kind}/{name}", fragment["numel"]) for fragment in fragments]
            placement.take(whole).copy_(torch.cat(parts).view(placement.local_shape))
        return whole

    def _read(self, file: str, key: str, numel: int) -> Tensor:
        try:
            with safe_open(self.folder / file, framework="pt") as opened:
                part = opened.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / file} cannot give {key}: {error}") from error
        if part.numel() != numel:
            raise CheckpointError(f"{self.folder / file}: {key} has {part.numel()} elements, the manifest says {numel}")
        return part


def open_checkpoint(folder: Path) -> Checkpoint:
    """Raises CheckpointError that names the missing or damaged part."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["version"] != VERSION:
            raise CheckpointError(f"{folder}: format version {manifest['version']}, this program reads {VERSION}")
        files = manifest["files"]
        for file, expected in files.items():
            if Path(file).name != file:
                raise CheckpointError(f"{folder}: file name {file!r} leaves the folder")
            path = folder / file
            if not path.is_file():
                raise CheckpointError(f"{path} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
            if _sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path} is damaged: its checksum differs from the manifest's")
        _check_coverage(manifest, folder)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {type(error).__name__}: {error}") from error
    return Checkpoint(folder, manifest)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, and what is wrong with newer ones that had to be passed over.

    None if nothing was ever saved. Raises CheckpointError if checkpoints exist but none is complete.
    """
    problems: list[str] = []
    for folder in published(root):
        try:
            return open_checkpoint(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("no complete checkpoint: " + "; ".join(problems))
    return None, []


def find_checkpoint(root: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a step, or the newest complete one; a warning for every newer one that is damaged."""
    if step is not None:
        return open_checkpoint(root / f"step_{step:08d}")
    checkpoint, problems = newest(root)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if checkpoint is None:
        raise CheckpointError(f"{root} holds no checkpoint: the run has not been saved yet")
    return checkpoint


# -- restore ---------------------------------------------------------------------------------------------------------


def restore(checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> None:
    """Write the checkpoint into the fragments' tensors; they may be cut in any way."""
    for fragment in fragments:
        for kind, tensor in fragment.tensors.items():
            local = _local(checkpoint, fragment.name, kind, fragment.placement)
            tensor.copy_(local.reshape(-1)[fragment.start : fragment.start + fragment.numel])


@torch.no_grad()
def load_weights(checkpoint: Checkpoint, module: nn.Module, only: tuple[str, ...] = ("*",)) -> None:
    """Weights alone into a module on any layout. Names must be the same on both sides, or with `only` those of the
    module that match a pattern must be in the checkpoint."""
    own = dict(module.named_parameters())
    if only != ("*",):
        own = {name: own[name] for pattern in only for name in fnmatch.filter(own, pattern)}
    missing = own.keys() - checkpoint.names
    unknown = checkpoint.names - own.keys() if only == ("*",) else set()
    if missing or unknown or not own:
        raise CheckpointError(
            f"{checkpoint.folder} is of another model: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
            + ("" if own else f", and no parameter matches {list(only)}")
        )
    for name, parameter in own.items():
        parameter.copy_(_local(checkpoint, name, "weight", placement_of(parameter)))


def _local(checkpoint: Checkpoint, name: str, kind: str, placement: Placement) -> Tensor:
    whole = checkpoint.logical(name, kind)
    if tuple(whole.shape) != placement.shape:
        raise CheckpointError(
            f"{checkpoint.folder}: {name} has shape {tuple(whole.shape)}, the model's is {placement.shape}"
        )
    return placement.take(whole)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
