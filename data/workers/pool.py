"""One function over many items, in processes that may die of what they read."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.workers.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2
"""Items drawn for each worker whose results have not been taken."""


@dataclasses.dataclass(frozen=True)
class Died:
    """In place of a result: the process that worked on this item ended (a codec crashed, or memory ran out)."""


def each(
    function: Callable[[T], R], items: Iterable[T], workers: int, preload: tuple[str, ...] = ()
) -> Iterator[tuple[T, R | Died]]:
    """(item, result) in the order of the items, which are drawn a few ahead; workers = 0: in this process. Raises what a call
    raises. preload: modules that are imported once, in the server that workers are forked from.

    A process that dies takes its whole pool along; what was in work then is tried again, one by one.
    """
    if not workers:
        yield from ((item, function(item)) for item in items)
        return
    source = iter(items)
    while True:
        started: collections.deque[T] = collections.deque()
        results: collections.deque[Future[R]] = collections.deque()
        with _pool(workers, preload) as pool, contextlib.suppress(BrokenProcessPool):
            while True:
                for item in itertools.islice(source, AHEAD * workers - len(results)):
                    started.append(item)
                    results.append(pool.submit(function, item))
                if not results:
                    return
                result = results[0].result()
                results.popleft()
                yield started.popleft(), result
        # Items are begun in order, so those in work were the first ones.
        source = itertools.chain(started, source)
        for item in itertools.islice(source, workers):
            yield item, _alone(function, item, preload)


def _alone(function: Callable[[T], R], item: T, preload: tuple[str, ...]) -> R | Died:
    with _pool(1, preload) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return Died()


@contextlib.contextmanager
def _pool(workers: int, preload: tuple[str, ...]) -> Iterator[ProcessPoolExecutor]:
    # Not fork: decoders and thread pools that are inherited hang.
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """In a worker: end with the main process, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
