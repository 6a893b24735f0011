"""CPU threads of a rank: those that the configuration or OMP_NUM_THREADS name, else those that the network is fastest with.

A small network is slower with all cores of a machine than with one, and ranks of one machine share its cores. So the first start of a
run measures, and later starts on as many cores keep what it found: sums of other numbers of threads differ in their last digits.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from data.stream.micro_batch import MicroBatch
from data.workers.loader import usable_cores
from model.noise import keys_of
from parallel.checkpoints import write_atomically
from parallel.collectives import maximum
from parallel.health.stop_signal import any_rank
from parallel.mesh import Mesh
from run.config import RunConfig
from run.strict_text import TextError, read_json

CHOSEN = "threads.json"
PASSES = 3
"""Measured for each number of threads; the fastest counts, as workers and other ranks are busy too."""
GAIN = 0.95
"""More threads must take this share of the time of fewer, or less."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """threads: of a rank, found for `cores` of them to each of the machine's ranks."""

    threads: int
    cores: int


def choose_threads(
    run: RunConfig,
    stream: Iterator[MicroBatch],
    network: Callable[..., object],
    mesh: Mesh,
    ranks_here: int,
    tell: Callable[[str], None],
) -> Iterator[MicroBatch]:
    """Collective. -> the stream as it was; where threads are measured, its first micro-batch has been passed through the network, which
    takes a batch and noise keys. ranks_here: on this machine."""
    if run.threads:
        torch.set_num_threads(run.threads)
    folder, cores = run.folder, max(1, usable_cores() // ranks_here)
    is_chosen = bool(run.threads) or "OMP_NUM_THREADS" in os.environ or mesh.device != "cpu"
    known = None if is_chosen else _read(folder, cores)
    # Passes are collective: all ranks measure, and the same numbers, or none does.
    (is_elsewhere,) = any_rank((is_chosen or known is not None,), mesh)
    most = -int(_most(torch.tensor([-cores]), mesh))
    if is_elsewhere or most == 1:
        if not is_chosen:
            torch.set_num_threads(known.threads if known else most)
        return stream
    first = next(stream)
    batch, keys = first.batch.to(mesh.device), keys_of(run.seed, first.assignment.step, first.assignment.number)
    seconds = {threads: _seconds(threads, lambda: network(batch, keys), mesh) for threads in _numbers(most)}
    threads = _best(seconds)
    torch.set_num_threads(threads)
    if mesh.is_first:
        write_atomically(folder / CHOSEN, json.dumps(dataclasses.asdict(Choice(threads, cores))))
        measured = ", ".join(f"{number}: {taken * 1000:.0f} ms" for number, taken in seconds.items())
        tell(f"threads: {threads} a rank (a pass forward with {measured}); threads=N says how many")
    return itertools.chain([first], stream)


def _numbers(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return sorted({*(1 << power for power in range(most.bit_length())), most})


def _seconds(threads: int, forward: Callable[[], object], mesh: Mesh) -> float:
    """Of a pass, on the slowest rank."""
    torch.set_num_threads(threads)
    taken = []
    for _ in range(PASSES):
        begin = time.perf_counter()
        with torch.no_grad():
            forward()
        taken.append(time.perf_counter() - begin)
    return float(_most(torch.tensor([min(taken)], dtype=torch.float64), mesh))


def _best(seconds: dict[int, float]) -> int:
    """The fewest threads that more of them do not beat by enough."""
    best = next(iter(seconds))
    for threads, taken in seconds.items():
        if taken <= GAIN * seconds[best]:
            best = threads
    return best


def _most(x: torch.Tensor, mesh: Mesh) -> float:
    """The largest of all ranks."""
    return maximum(maximum(x, mesh.data), mesh.tensor).item()


def _read(folder: Path, cores: int) -> Choice | None:
    try:
        found = Choice(**read_json((folder / CHOSEN).read_bytes()))
    except (OSError, TextError, TypeError):
        return None
    return found if found.cores == cores and isinstance(found.threads, int) and 1 <= found.threads <= cores else None
