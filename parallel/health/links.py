"""How fast ranks exchange small and large messages, measured in process groups like those of a training."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from parallel.collectives import Axis, add_up, exchanged
from parallel.launch import device_number, launched_world_size
from parallel.traffic import sent_by_all_reduce, sent_by_exchange

FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective of messages of `num_bytes` for each rank. seconds: median of a call. sent_bytes: what a rank sends in one."""

    operation: str
    num_bytes: int
    seconds: float
    sent_bytes: int

    @property
    def gb_per_s(self) -> float:
        """1e9 bytes per second that leave a rank."""
        return self.sent_bytes / self.seconds / 1e9


def measure_exchanges(sizes: Sequence[int], timeout_s: float, repeats: int = 5) -> list[Exchange]:
    """Collective: meets the other ranks that the launcher's variables tell of, measures, and leaves. The same on all ranks but for
    seconds. Raises what torch raises where ranks do not meet in time."""
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{device_number(torch.cuda.device_count())}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=timeout_s))
    try:
        axis = Axis("ranks", launched_world_size(), dist.get_rank(), dist.group.WORLD)
        return [exchange for size in sizes for exchange in _measured(size, axis, device, repeats)]
    finally:
        dist.destroy_process_group()


def _measured(size: int, axis: Axis, device: torch.device, repeats: int) -> list[Exchange]:
    rows = size // FLOAT_BYTES // axis.size
    x, counts = torch.ones(rows * axis.size, device=device), [rows] * axis.size
    reduced = _median_s(lambda: add_up(x, axis), device, repeats)
    sent = _median_s(lambda: exchanged(x, counts, counts, axis), device, repeats)
    return [
        Exchange("all-reduce", size, reduced, sent_by_all_reduce(x, axis.size)),
        Exchange("all-to-all", size, sent, sent_by_exchange(x, counts, axis.rank)),
    ]


def _median_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The first call makes connections and is not counted."""
    taken = []
    for _ in range(repeats + 1):
        dist.barrier()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])
