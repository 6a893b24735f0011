"""Worker processes that live exactly as long as the process they work for."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
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
    """A process started meanwhile ignores what asks the trainer to stop. Off the main thread, where Python allows no handlers, nothing
    changes."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield
        return
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """In a worker process: end when the process that started it is gone, however it ended, or sends SIGTERM. The parent of the system
    is the fork server, which lives as long as its children do, so nobody else looks. A SIGTERM of others is not for workers: launchers
    send it to all descendants of a trainer that is to save and needs its workers until then."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    # Blocked, so that it can be asked who sent it. Before other threads begin, which take over what is blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it

    def watch() -> None:
        parent.join()
        os._exit(1)

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (parent.pid, os.getpid()):
            pass
        os._exit(1)

    for target in (watch, listen):
        threading.Thread(target=target, name=f"parent {target.__name__}", daemon=True).start()


def keep_freed_memory() -> None:
    """From now on this process keeps what it freed for what it allocates next. By itself glibc hands the memory of every decoded
    image back to the system, which has to clear it page by page for the one after it. Other C libraries: nothing changes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
