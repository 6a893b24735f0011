"""Worker processes of a rank: how many, how they start, and the loader that takes turns with them."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import re
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader, IterableDataset

from data.workers.processes import end_with_parent, keep_freed_memory, leave_group, signals_ignored

MAX_WORKERS = 8
"""Of a rank, where their number is `auto`."""


_CGROUP = Path("/sys/fs/cgroup")
_GONE = re.compile(r"^DataLoader worker .*(exited unexpectedly|is killed by signal)")


class WorkersError(Exception):
    """This machine cannot start worker processes, or has ended one; the message has the remedy."""


class WorkerGoneError(WorkersError):
    """A worker process was ended from outside."""


def loader_of(dataset: IterableDataset, workers: int, collate: Callable[[Any], Any] | None = None) -> Iterator[Any]:
    """What the dataset yields, worker by worker in turn; `collate` is applied where it is made. Both travel to workers by value, and
    nothing of them through /dev/shm, which is small in containers. Raises WorkersError, and later WorkerGoneError."""
    both = _ByValue(dataset, collate)
    loader = DataLoader(
        _Items(both) if workers else dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=worker_context() if workers else None,
        pin_memory=False,
        worker_init_fn=_start_worker if workers else None,
        collate_fn=_Collate(both) if workers else collate,
    )
    try:
        return _until_one_is_gone(iter(loader))
    except OSError as error:
        raise WorkersError(
            f"worker processes cannot start: {error.strerror or error}; they need files in TMPDIR and semaphores in /dev/shm (docker run "
            "--shm-size, --ipc=host) and some open files each (ulimit -n): give them that, or do without (data.workers=0, in evaluations "
            "evaluate.workers=0 or --workers 0)"
        ) from error


def _until_one_is_gone(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except RuntimeError as error:
        if not _GONE.search(str(error)):
            raise
        raise WorkerGoneError(
            "a worker process of the data was killed from outside, or for want of memory: the same command begins again, a training at its "
            "newest checkpoint; fewer workers (data.workers, in evaluations evaluate.workers or --workers) or smaller "
            "batches need less memory"
        ) from error


class _ByValue:
    """Dataset and collate in one pickle, since they may share objects. torch's own way puts each of their tensors into shared memory."""

    def __init__(self, dataset: IterableDataset, collate: Callable[[Any], Any] | None) -> None:
        self.dataset, self.collate = dataset, collate

    def __reduce__(self) -> Any:
        return _unpickled, (pickle.dumps((self.dataset, self.collate)),)


def _unpickled(content: bytes) -> _ByValue:
    return _ByValue(*pickle.loads(content))


class _Items(IterableDataset):
    def __init__(self, both: _ByValue) -> None:
        self._both = both

    def __iter__(self) -> Iterator[Any]:
        return iter(self._both.dataset)


class _Collate:
    def __init__(self, both: _ByValue) -> None:
        self._both = both

    def __call__(self, item: Any) -> Any:
        return item if self._both.collate is None else self._both.collate(item)


def _start_worker(worker: int) -> None:
    leave_group()
    end_with_parent()
    keep_freed_memory()


def worker_context() -> ForkServerContext:
    """How worker processes start: forked from a server that has no decoder, and has imported the libraries that they need.
    None of our own modules: the server looks for those where it was started, which may be any folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data", "av", "PIL.Image", "webdataset"])
    # A signal to the process group must leave it: were it gone, its workers would count as dead.
    with signals_ignored():
        forkserver.ensure_running()
    return context


def worker_count(workers: int | Literal["auto"], ranks_here: int) -> int:
    """Worker processes of a rank. auto: the cores of this rank's share without the one that the trainer keeps busy, but one
    at least (while a rank waits for others, its core is free) and MAX_WORKERS at most. `ranks_here`: on this machine."""
    if workers != "auto":
        return workers
    return min(MAX_WORKERS, max(1, usable_cores() // ranks_here - 1))


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and what a container's quota of CPU time amounts to (rounded down, at
    least one)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Cores' worth of CPU time per period, by cgroup 2 or 1; inf without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
