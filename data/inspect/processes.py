"""One function over many shards, in processes that may die of what they read."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from data.parent import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Died:
    """In place of a result: the process that worked on this item ended (a codec crashed, or memory ran out)."""


def default_workers() -> int:
    """One process a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable[[T], R], items: Sequence[T], workers: int, label: str) -> Iterator[tuple[T, R | Died]]:
    """(item, result) in the order of the items, with a progress bar on terminals; workers = 0: in this process."""
    results = _in_processes(function, items, workers) if workers else ((item, function(item)) for item in items)
    with tqdm(total=len(items), desc=label, unit=" shards", disable=None) as bar:
        for result in results:
            bar.update()
            yield result


def _in_processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[tuple[T, R | Died]]:
    """A process that dies takes its whole pool along; what was in work then is tried again, one by one."""
    results: dict[int, R | Died] = {}
    position = 0
    while position < len(items):
        with _pool(min(workers, len(items))) as pool:
            futures = {i: pool.submit(function, items[i]) for i in range(position, len(items)) if i not in results}
            try:
                while position < len(items):
                    if position in futures:
                        results[position] = futures[position].result()
                        del futures[position]
                    yield items[position], results.pop(position)
                    position += 1
            except BrokenProcessPool:
                results |= {i: f.result() for i, f in futures.items() if f.done() and f.exception() is None}
        # Items are begun in order, so those in work were the first without a result.
        for i in [i for i in range(position, len(items)) if i not in results][:workers]:
            results[i] = _alone(function, items[i])


def _alone(function: Callable[[T], R], item: T) -> R | Died:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return Died()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Not fork: decoders and thread pools that are inherited hang.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
