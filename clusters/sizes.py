"""Cores and host memory of a rank, from its configuration and its plan. Estimates: Slurm ends a job that takes more memory."""

from __future__ import annotations

import dataclasses
import math

from data.workers.loader import MAX_WORKERS
from plan import plan
from run.config import RunConfig

GIB = 1 << 30
PROCESS_GIB = 2.0
"""Python, torch and DeepSpeed, as a rank without a GPU holds them."""
CUDA_GIB = 4.0
"""Libraries and pinned memory besides, where there is a GPU."""
WORKER_GIB = 1.0
"""A data worker with the samples that it decodes ahead."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """cores: of a rank; threads: that its sums use; memory_gib: of a rank on the host. fits: whether the plan fits the device;
    peak_gib: of a rank on the device, by the plan."""

    cores: int
    threads: int
    memory_gib: float
    fits: bool
    peak_gib: float
    remedies: tuple[str, ...]


def sizes_of(run: RunConfig, world: int, has_gpus: bool, device_memory_gib: float) -> Sizes:
    """Raises ConfigError for a layout that cannot be on so many ranks."""
    if not has_gpus and run.parallel.precision == "auto":  # a plan takes it for that of a GPU
        run = dataclasses.replace(run, parallel=dataclasses.replace(run.parallel, precision="fp32"))
    planned = plan(run, world, device_memory_gib)
    memory = planned.memory
    workers = MAX_WORKERS if run.data.workers == "auto" else run.data.workers
    threads = run.threads or 1
    copies = int(run.save_async) + int(memory.offloaded)
    host = PROCESS_GIB + WORKER_GIB * workers + copies * memory.optimizer.total / GIB
    host += CUDA_GIB if has_gpus else memory.total / GIB
    return Sizes(
        # One more where there is a GPU: its driver's and NCCL's threads are busy beside the trainer's own.
        cores=threads + workers + int(has_gpus),
        threads=threads,
        memory_gib=host,
        fits=not has_gpus or memory.total <= planned.device_memory,
        peak_gib=memory.total / GIB,
        remedies=planned.remedies if has_gpus else (),
    )


def per_node_gib(rank_gib: float, ranks: int) -> int:
    return math.ceil(rank_gib * ranks)
