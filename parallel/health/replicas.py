"""Checks that copies are copies: parameters of ranks that must agree, batches of tensor ranks.

Sums of the raw bits are compared, so a difference in one bit of one element shows; a few bytes per tensor travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.collectives import Axis
from parallel.mesh import Mesh
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, placement_of

CHUNK = 1 << 22
"""Elements summed at a time, so that the check needs little memory beside the weights."""


class ReplicaError(RuntimeError):
    """Ranks that must hold the same values do not; the message names the tensors."""


def check_replicas(module: nn.Module, mesh: Mesh) -> None:
    """Collective. Dense parameters must be equal on all data ranks, experts on the ranks that hold the same experts, and
    what tensor parallelism does not cut on all tensor ranks. Raises ReplicaError on every rank of a group that differs."""
    named = list(module.named_parameters())
    experts = [(n, p) for n, p in named if placement_of(p).is_cut_along(EXPERT_AXIS)]
    dense = [(n, p) for n, p in named if not placement_of(p).is_cut_along(EXPERT_AXIS)]
    whole = [(n, p) for n, p in named if not placement_of(p).is_cut_along(TENSOR_AXIS)]
    for axis, group in ((mesh.data, dense), (mesh.expert_data, experts), (mesh.tensor, whole)):
        different = _different(group, axis)
        if different:
            raise ReplicaError(
                f"{len(different)} parameters differ between {axis.name} ranks: {', '.join(different[:5])}; "
                "restart from the last checkpoint, and suspect a rank that skipped an update or failing hardware"
            )


def check_batch(tensors: Iterable[tuple[str, Tensor]], mesh: Mesh) -> None:
    """Collective. Tensor ranks compute parts of the same batch; raises ReplicaError if theirs differ."""
    different = _different(list(tensors), mesh.tensor)
    if different:
        raise ReplicaError(f"tensor ranks read different batches: {', '.join(different)} differ")


def _different(named: Sequence[tuple[str, Tensor]], axis: Axis) -> list[str]:
    """Names of the tensors that are not the same on all ranks of the axis."""
    if axis.size == 1 or not named:
        return []
    sums = torch.stack([_bits(tensor) for _, tensor in named])
    # The largest of s and of -s: one reduction gives maximum and minimum.
    both = torch.stack([sums, -sums])
    dist.all_reduce(both, op=dist.ReduceOp.MAX, group=axis.group)
    return [name for (name, _), equal in zip(named, (both[0] == -both[1]).tolist(), strict=True) if not equal]


def _bits(tensor: Tensor) -> Tensor:
    """A scalar int64 that changes with any bit, and with the places of elements."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    start = 0
    for raw in tensor.detach().contiguous().view(-1).view(words).split(CHUNK):
        places = torch.arange(start, start + raw.numel(), device=raw.device)
        total += (raw.long() * (places % 65_521 + 1)).sum()
        start += raw.numel()
    return total
