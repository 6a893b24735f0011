"""Worker processes that live exactly as long as the process they work for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


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
