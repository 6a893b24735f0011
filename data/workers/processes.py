"""Worker processes that live exactly as long as the process they work for."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

KEPT_BYTES = 64 << 20
"""At the end of the heap, at most."""
_LARGEST_IN_HEAP = 32 << 20  # what glibc allows
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of malloc.h


def leave_group() -> None:
    """In a worker process: what a terminal, `timeout` or a batch system sends to the trainer's process group is for the trainer,
    which saves and needs its workers until then."""
    os.setpgrp()


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """A process started meanwhile ignores SIGTERM. Off the main thread, where Python allows no handlers, nothing changes."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """In a worker process: end when the process that started it is gone, however it ended. The parent of the system is the fork
    server, which lives as long as its children do, so nobody else looks."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def keep_freed_memory() -> None:
    """From now on this process keeps what it freed for what it allocates next. By itself glibc hands the memory of every decoded
    image back to the system, which has to clear it page by page for the one after it. Other C libraries: nothing changes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
