"""Run a function on several gloo ranks and get every rank's result."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from clusters.ranks import free_port


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """`function(rank, *args)` on `world_size` forked processes; raises the first failing rank's traceback.

    The launcher's environment variables are set; the function makes its own mesh. Results must be picklable
    without sharing memory (plain numbers, strings, numpy arrays).
    """
    _import_heavy_libraries()
    context = mp.get_context("fork")
    queue = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_entry, args=(rank, world_size, port, queue, function, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results: list[Any] = [None] * world_size
    try:
        for _ in range(world_size):
            rank, error, result = queue.get(timeout=timeout_s)
            if error:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{error}")
            results[rank] = result
    finally:
        for process in processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return results


@functools.cache
def _import_heavy_libraries() -> None:
    """Once in the parent, so that the forked ranks need not spend their 10 seconds on it."""
    import deepspeed  # noqa: F401
    import megatron.core.parallel_state
    import megatron.core.tensor_parallel  # noqa: F401


def _entry(rank: int, world_size: int, port: int, queue: Any, function: Callable[..., Any], args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    try:
        queue.put((rank, None, function(rank, *args)))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
        raise
