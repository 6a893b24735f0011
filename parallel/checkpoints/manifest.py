"""The manifest of a checkpoint: which fragment of which logical tensor lies in which file. Read as untrusted input."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from parallel.checkpoints.fragments import CheckpointError
from parallel.placement import Cut, Placement

VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 28
FILE_NAME = re.compile(r"rank_\d{5,}\.safetensors")

Count = Annotated[int, Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class StoredFragment:
    """Elements [start, start + numel) of the flattened part that the cuts (dim, axis, index, count) leave."""

    cuts: tuple[tuple[Count, str, Count, Annotated[int, Field(ge=1)]], ...]
    file: str
    start: Count
    numel: Count

    def placement(self, shape: tuple[int, ...]) -> Placement:
        return Placement(shape, tuple(Cut(*cut) for cut in self.cuts))


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    shape: tuple[Count, ...]
    kinds: tuple[str, ...]
    fragments: tuple[StoredFragment, ...]


@dataclasses.dataclass(frozen=True)
class StoredFile:
    bytes: Count
    sha256: str


@dataclasses.dataclass(frozen=True)
class Base:
    """Weights that the run did not train and that stay where they were: `names` are in the checkpoint `folder`, a path from the
    folder of this one; sha256: of that one's manifest."""

    folder: str
    sha256: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`tensors` by global name, `files` by name in the folder; `state` is the run's own."""

    version: int
    step: Count
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]
    state: dict[str, Any]
    base: Base | None = None

    def fragments_of(self, file: str) -> dict[str, int]:
        """Keys of a file and their elements."""
        return {
            f"{kind}/{name}": fragment.numel
            for name, tensor in self.tensors.items()
            for fragment in tensor.fragments
            if fragment.file == file
            for kind in tensor.kinds
        }


@dataclasses.dataclass(frozen=True)
class _Head:
    version: int


_MANIFESTS, _HEADS = TypeAdapter(Manifest), TypeAdapter(_Head)


@dataclasses.dataclass(frozen=True)
class RankPart:
    """What one rank wrote."""

    name: str
    file: StoredFile
    tensors: dict[str, StoredTensor]


def merge(parts: Iterable[RankPart], step: int, state: dict[str, Any], base: Base | None = None) -> Manifest:
    """Raises CheckpointError if ranks disagree about a tensor, or do not cover every tensor exactly once."""
    files: dict[str, StoredFile] = {}
    tensors: dict[str, StoredTensor] = {}
    fragments: dict[str, list[StoredFragment]] = {}
    for part in parts:
        files[part.name] = part.file
        for name, tensor in part.tensors.items():
            known = tensors.setdefault(name, tensor)
            if (known.shape, known.kinds) != (tensor.shape, tensor.kinds):
                raise CheckpointError(
                    f"ranks disagree about {name}: {known.shape} {known.kinds} and {tensor.shape} {tensor.kinds}"
                )
            fragments.setdefault(name, []).extend(tensor.fragments)
    tensors = {name: dataclasses.replace(t, fragments=tuple(fragments[name])) for name, t in tensors.items()}
    manifest = Manifest(VERSION, step, tensors, files, state, base)
    check(manifest)
    return manifest


def dump(manifest: Manifest) -> bytes:
    return _MANIFESTS.dump_json(manifest)


def parse(text: bytes) -> Manifest:
    """Raises CheckpointError with the place and the reason."""
    try:
        version = _HEADS.validate_json(text).version
        if version != VERSION:
            raise CheckpointError(f"format version {version}, this program reads {VERSION}")
        manifest = _MANIFESTS.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise CheckpointError(f"cannot be read: {place}: {first['msg']}") from error
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Every element of every logical tensor belongs to exactly one fragment, and every file can hold its fragments."""
    needed = dict.fromkeys(manifest.files, 0)
    if manifest.base:
        twice = manifest.tensors.keys() & set(manifest.base.names)
        if twice:
            raise CheckpointError(f"{min(twice)} is here and in the base {manifest.base.folder}")
    for file in manifest.files:
        if not FILE_NAME.fullmatch(file):
            raise CheckpointError(f"file name {file!r} leaves the folder or is none of rank_NNNNN.safetensors")
    for name, tensor in manifest.tensors.items():
        _check_coverage(name, tensor)
        for fragment in tensor.fragments:
            if fragment.file not in needed:
                raise CheckpointError(f"{name} lies in {fragment.file!r}, which is not in the list of files")
            needed[fragment.file] += 4 * fragment.numel * len(tensor.kinds)
    for file, stored in manifest.files.items():
        if stored.bytes < needed[file]:
            raise CheckpointError(f"{file} has {stored.bytes} bytes, its tensors need {needed[file]}")


def _check_coverage(name: str, tensor: StoredTensor) -> None:
    """All fragments are cut along the same dimensions into as many parts, so different parts share no element."""
    shape, ways = tensor.shape, {tuple((dim, count) for dim, _, _, count in f.cuts) for f in tensor.fragments}
    if len(ways) > 1:
        raise CheckpointError(f"{name} is cut in different ways: {sorted(ways)}")
    dims = [dim for way in ways for dim, _ in way]
    if len(set(dims)) < len(dims) or any(dim >= len(shape) for dim in dims):
        raise CheckpointError(f"{name} of shape {shape} cannot be cut along dimensions {dims}")
    parts: dict[Placement, list[StoredFragment]] = {}
    for fragment in sorted(tensor.fragments, key=lambda f: (f.start, f.numel)):
        for dim, axis, index, count in fragment.cuts:
            if index >= count or shape[dim] % count:
                raise CheckpointError(f"{name} of shape {shape} has no part {index} of {count} {axis} ranks")
        parts.setdefault(fragment.placement(shape), []).append(fragment)
    covered = 0
    for placement, fragments in parts.items():
        local, end = math.prod(placement.local_shape), 0
        for fragment in fragments:
            if fragment.start != end:
                raise CheckpointError(f"{name} has a gap or an overlap at element {end} of {placement.cuts}")
            end += fragment.numel
        if end != local:
            raise CheckpointError(f"{name} ends at element {end} of {local}")
        covered += end
    if covered != math.prod(shape):
        raise CheckpointError(f"{name} has {covered} of {math.prod(shape)} elements: a rank's part is missing")
