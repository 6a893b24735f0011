"""An opened checkpoint, and reading spans of its tensors: from its own files, or from those of the one that it builds on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from parallel.checkpoints.fragments import UNREADABLE, CheckpointError
from parallel.checkpoints.manifest import Manifest
from parallel.checkpoints.resharding import Run, copy_overlap
from parallel.placement import Placement

AVERAGE, FINAL = "average", "final"
"""Kinds: the moving average of a weight, and what a run has to give: the average where there is one, or else the weight."""
MAX_MAPPED_BYTES = 1 << 26
"""Files are mapped into memory to be read; after so many bytes they are opened anew, which lets go of the pages."""
LARGE_PAGE = 1 << 21
"""What the kernel may map for a read of one number."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened, verified checkpoint. sha256: of its manifest, which has those of its files; base: the one that has the weights which the
    run did not train (manifest.Base)."""

    folder: Path
    manifest: Manifest
    sha256: str
    base: Checkpoint | None = None

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def state(self) -> dict[str, Any]:
        return self.manifest.state

    @property
    def names(self) -> set[str]:
        """Of all tensors, those of the base included."""
        return {*self.manifest.tensors, *(self.manifest.base.names if self.manifest.base else ())}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a logical tensor that is in `names`."""
        tensor = self.manifest.tensors.get(name)
        if tensor is not None:
            return tensor.shape
        assert self.base is not None
        return self.base.shape(name)

    @property
    def has_averages(self) -> bool:
        return any(AVERAGE in tensor.kinds for tensor in self.manifest.tensors.values())

    def logical(self, name: str, kind: str = FINAL) -> Tensor:
        """One whole tensor in fp32."""
        whole = torch.empty(self.shape(name) if name in self.names else ())
        with opened(self) as reader:
            reader.fill(whole.view(-1), name, kind, Placement(tuple(whole.shape)), 0)
        return whole


@contextlib.contextmanager
def opened(checkpoint: Checkpoint) -> Iterator[SpanReader]:
    reader = SpanReader(checkpoint)
    try:
        yield reader
    finally:
        reader.close()


class SpanReader:
    """Reads spans of the checkpoint's files, each opened once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder, self._tensors = checkpoint.folder, checkpoint.manifest.tensors
        self._elsewhere = frozenset(checkpoint.manifest.base.names) if checkpoint.manifest.base else frozenset()
        self._base = SpanReader(checkpoint.base) if checkpoint.base else None
        self._files: dict[str, Any] = {}
        self._mapped = 0

    def fill(self, out: Tensor, name: str, kind: str, placement: Placement, start: int) -> None:
        """`out` [numel] takes elements from `start` on of the flattened part that the placement leaves."""
        tensor = self._tensors.get(name)
        if kind == FINAL and name not in self._elsewhere:
            kind = AVERAGE if tensor is not None and AVERAGE in tensor.kinds else "weight"
        if name in self._elsewhere and kind in ("weight", FINAL):
            assert self._base is not None
            self._base.fill(out, name, FINAL, placement, start)  # as when the run was started from it
            return
        if kind != "weight" and (name in self._elsewhere or (tensor is not None and tensor.kinds == ("weight",))):
            raise CheckpointError(
                f"{self._folder} has no {kind} of {name}, which was frozen when it was saved: freeze it again, or begin another "
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
        self._mapped += max(4 * numel, LARGE_PAGE)
        try:
            if file not in self._files:
                self._files[file] = safe_open(self._folder / file, framework="pt")
            found: Tensor = self._files[file].get_slice(key)[start : start + numel]
            return found
        except UNREADABLE as error:
            raise CheckpointError(f"{self._folder} cannot be read: {error}") from error

    def close(self) -> None:
        self._files.clear()
        self._mapped = 0
        if self._base is not None:
            self._base.close()
