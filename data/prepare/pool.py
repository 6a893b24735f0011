"""Calls in worker processes, results as they come."""

from __future__ import annotations

import concurrent.futures as futures
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.parent import end_with_parent
from data.shards import DatasetError

R = TypeVar("R")


def run(calls: Iterator[Callable[[], R]], workers: int) -> Iterator[R]:
    """The results of all calls, in the order in which they end. One worker is this process.

    At most two calls for each worker are drawn ahead. Raises what a call raises, and DatasetError when a worker dies.
    """
    if workers == 1:
        yield from (call() for call in calls)
        return
    context = multiprocessing.get_context("forkserver")
    # All layouts are imported once, in the server that the workers are forked from.
    context.set_forkserver_preload(["data.prepare.__main__"])
    executor = futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        waiting = {executor.submit(call) for call in itertools.islice(calls, 2 * workers)}
        while waiting:
            done, waiting = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
                waiting |= {executor.submit(call) for call in itertools.islice(calls, 1)}
    except BrokenProcessPool as error:
        raise DatasetError(
            "a worker process was killed, perhaps for want of memory: repeat the command to go on, with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """In a worker: end with the main process, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
