"""Bytes that torch holds while something runs, beyond what it held before."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

BETWEEN = "between"
"""Name of the place, by torch.profiler.record_function, at which `held` looks."""


def held(run: Callable[[], object]) -> tuple[int, int]:
    """On a CPU -> (bytes alive at BETWEEN, 0 where `run` has no such place; the most at any time)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    alive = most = between = 0
    for event in events:
        if event.name() == BETWEEN:
            between = alive
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return between, most


def most_held(device: str, run: Callable[[], object]) -> int:
    if torch.device(device).type != "cuda":
        return held(run)[1]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before
