"""How a run is asked to stop."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from parallel.mesh import Mesh


class StopSignal:
    """SIGTERM or SIGINT asks for a save at the end of the step; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True


def any_rank(flags: tuple[bool, ...], mesh: Mesh) -> tuple[bool, ...]:
    """Collective: which of the flags is set on any rank of the world?"""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flags
    values = torch.tensor([int(flag) for flag in flags], device=mesh.device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values.tolist())
