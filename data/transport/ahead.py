"""A thread that fetches what will be read next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from data.transport.reply import FetchError


class Ahead:
    """Runs jobs one after another in a thread of its own. A job that raises FetchError is left to the reader, who will meet
    the same error and report it."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = False

    def want(self, jobs: Iterable[Callable[[], None]]) -> None:
        """These jobs, in this order, in place of those that have not begun."""
        with self._changed:
            self._jobs = list(jobs)
            if self._thread is None and self._jobs:
                self._thread = threading.Thread(target=self._run, name="fetch ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._jobs, self._ended = [], True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._ended)
                if self._ended:
                    return
                job = self._jobs.pop(0)
            try:
                job()
            except FetchError:
                continue
