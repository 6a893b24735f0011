"""What a rank sends over an axis of the mesh, and how long it waits there, counted where parallel/collectives.py calls the library.

Sent are the bytes that leave the rank: by a ring for reductions and gathers, as plan/traffic.py has it, by the rows of other ranks for
all-to-alls. Off until somebody asks, then a few additions for each collective.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor


class Traffic:
    """bytes, seconds: since they were taken last. counts: whether collectives are counted now; times: whether they are timed, too.

    On a CUDA device two events stand around the place in its stream where it waits for a collective; they are read by `taken` alone."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.counts = self.times = False
        self._bytes, self._seconds = 0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def taken(self) -> tuple[int, float]:
        """-> (bytes, seconds), which start anew. A device must have reached all of it, else it is waited for."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        taken = self._bytes, self._seconds
        self._bytes, self._seconds, self._events = 0, 0.0, []
        return taken

    def sends(self, num_bytes: int) -> None:
        if self.counts:
            self._bytes += num_bytes

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective, or around the wait for one that is under way."""
        if not self.times:
            yield
        elif self.device == "cpu":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
        else:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            yield
            after.record()
            self._events.append((before, after))


def bytes_of(x: Tensor) -> int:
    return x.numel() * x.element_size()


def sent_by_all_reduce(x: Tensor, ranks: int) -> int:
    return 2 * bytes_of(x) * (ranks - 1) // ranks


def sent_by_gather(own: Tensor, ranks: int) -> int:
    return bytes_of(own) * (ranks - 1)


def sent_by_scatter(whole: Tensor, ranks: int) -> int:
    return bytes_of(whole) * (ranks - 1) // ranks


def sent_by_exchange(x: Tensor, send_counts: list[int], rank: int) -> int:
    """Rows that stay are not sent."""
    rows = sum(send_counts)
    return bytes_of(x) // rows * (rows - send_counts[rank]) if rows else 0
