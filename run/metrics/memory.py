"""What a rank holds: seen around its first steps and set beside what was planned, and the most that it ever held.

memory.json  {"predicted": {weights, gradients, optimizer, activations, total}, "measured": {weights, gradients, optimizer, peak},
              "families": {"predicted" and "measured": {weights, gradients, optimizer: {dense, experts, routers}}}}, GiB of the first rank

The peak is the allocator's on a CUDA device; on a CPU it is the largest resident set of the process, libraries and data included.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parallel.checkpoints import Fragment, write_atomically
from parallel.norms import FAMILIES, family_of

GIB = 1 << 30
MEMORY = "memory.json"
Families = dict[str, int]
"""Bytes by family of parameters."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a plan expects of a rank, in bytes. memory: weights, gradients, optimizer, activations, total; families: of the first three, by
    family. reduction: what DeepSpeed sends over data ranks in a step, gradients and updated weights."""

    memory: Mapping[str, int]
    families: Mapping[str, Families]
    reduction: int


class Memory:
    """A listener of `Phases` until it has been written: gradients are whole between the last backward pass and their reduction alone."""

    def __init__(
        self,
        module: nn.Module,
        fragments: Callable[[], Iterable[Fragment]],
        device: str,
        folder: Path,
        expected: Expected,
    ) -> None:
        self.module, self.fragments, self.device = module, fragments, device
        self.folder, self.expected = folder, expected
        self._gradients = dict.fromkeys(FAMILIES, 0)
        self._written = False

    def __call__(self, phase: str, step: int | None) -> None:
        if phase == "reduce" and not self._written:
            seen = by_family((name, [p.grad]) for name, p in self.module.named_parameters() if p.grad is not None)
            self._gradients = max(self._gradients, seen, key=lambda held: sum(held.values()))

    def write(self) -> None:
        """Once; later calls do nothing."""
        if self._written:
            return
        self._written = True
        held = {
            "weights": by_family((name, [p]) for name, p in self.module.named_parameters()),
            "gradients": self._gradients,
            "optimizer": self._optimizer(),
        }
        measured = {name: sum(of_one.values()) for name, of_one in held.items()} | {"peak": peak_bytes(self.device)}
        families = {"predicted": self.expected.families, "measured": held}
        both = {"predicted": self.expected.memory, "measured": measured, "families": families}
        write_atomically(self.folder / MEMORY, json.dumps(_in_gib(both), indent=1) + "\n")

    def _optimizer(self) -> Families:
        """Master weights, moments and averages; masters that are the parameters themselves are no further memory."""
        own = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        return by_family(
            (fragment.name, [t for t in fragment.tensors.values() if t.untyped_storage().data_ptr() not in own])
            for fragment in self.fragments()
        )


def by_family(named: Iterable[tuple[str, Iterable[torch.Tensor]]]) -> Families:
    """Bytes of tensors by the family of the parameter that they belong to."""
    held = dict.fromkeys(FAMILIES, 0)
    for name, tensors in named:
        held[family_of(name)] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return held


def peak_bytes(device: str) -> int:
    """The most that this rank has held since it started."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _in_gib(tree: Any) -> Any:
    """Bytes to GiB, to a kibibyte."""
    return {key: _in_gib(value) for key, value in tree.items()} if isinstance(tree, Mapping) else round(tree / GIB, 6)
