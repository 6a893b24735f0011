"""How a run is asked to stop."""

from __future__ import annotations

import signal
import time

import torch
import torch.distributed as dist

from parallel.mesh import Mesh

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ECHO_S = 5.0
"""Launchers and batch systems pass on a signal that every process of the group has got already."""


class StopSignal:
    """SIGTERM, SIGINT, SIGHUP or what batch systems send ahead of time (SIGUSR1, SIGUSR2) asks for a save at the end of the step; once
    more after ECHO_S ends at once.

    A signal that was ignored when the program began stays so: `nohup` says by it that the terminal may go.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    @property
    def requested(self) -> bool:
        return self._first is not None

    def leave(self) -> None:
        """All is saved. Launchers send signals to the rest when one rank has left, which must not change how this one ends."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._first is None:
            self._first = time.monotonic()
        elif time.monotonic() - self._first > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def any_rank(flags: tuple[bool, ...], mesh: Mesh) -> tuple[bool, ...]:
    """Collective: which of the flags is set on any rank of the world?"""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flags
    values = torch.tensor([int(flag) for flag in flags], device=mesh.device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values.tolist())
