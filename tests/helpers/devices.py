"""The devices on which one test body runs: a CPU that takes the branches of a GPU, and a GPU where there is one.

`make gpu` runs what is marked `gpu`; the same tests with `cpu` in their name belong to the normal suite and to no machine:

| what | tests | on the CPU |
|---|---|---|
| loss and gradients of a pass, fp32 and bf16 | model/test_devices.py: test_a_pass_... | branches forced |
| launches of a block in bf16 | model/test_devices.py: test_launches_... | operators counted |
| nothing waits in a step | model/test_hot_path.py: test_nothing_waits_... | places counted |
| grouped products | model/moe/test_grouped.py: test_grouped_products_... | branch forced |
| chunks of a vocabulary | model/scoring/test_vocabulary.py: test_chunks_..., test_a_chunk_... | the same |
| rows without pads | model/test_packed.py: test_packed_rows_... | kernels of ours behind torch's call |
| compiled passes | parallel/test_kernels.py: test_real_kernels_... | slow; test_compiled_passes |
| batches to the device | data/workers/test_to_device.py: test_copies_to_a_... | test_copies_start_in_the_thread_... |
| time of phases | run/metrics/test_phases.py: test_a_device_measures_... | test_a_device_has_phases_of_its_own_... |
| a run and its resume, also from a CPU's | test_train.py: test_a_run_resumes_on_a_device | slow; test_killed_and_repeated_... |
| the benchmark | test_benchmarks.py: test_step_on_a_device | tiny |
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_branches import OF_A_GPU
from tests.helpers.hot_path import Launches, Waits

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NO_DEVICE = "no CUDA device here; the same test on the CPU is in the normal suite (tests/helpers/devices.py)"


def take_branches_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where they compute the same and are no faster; in any precision."""
    for name, answer in OF_A_GPU.items():
        monkeypatch.setattr(name, lambda x, answer=answer: answer)


@contextlib.contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Inside, the host must not wait for the device: on a GPU torch raises where it does, elsewhere such places are counted."""
    if device == "cpu":
        with Waits() as waits:
            yield
        assert not waits.seen, waits.seen
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def launches(device: str) -> Iterator[list[int]]:
    """Gives a list which holds, afterwards, the number of kernels that the device ran, on a CPU of operators that would launch one."""
    found: list[int] = []
    if device == "cpu":
        with Launches() as counter:
            yield found
        found.append(counter.launches)
        return
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield found
        torch.cuda.synchronize()
    names = [
        event.name()
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]
    found.append(sum(not name.startswith(("Memcpy", "Memset")) for name in names))


def only_seeing(device: str) -> dict[str, str]:
    """Variables of a process's environment: one that is to run on the CPU sees no GPU."""
    return dict(os.environ) if device == "cuda" else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
