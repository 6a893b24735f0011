"""What a sink is, and one that may fail without the training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from run.errors import ConfigError
from run.metrics.meter import Record


class Sink(Protocol):
    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Guarded:
    """A view of the records. What it raises becomes one warning and its end (a disk is full, a server is gone, its helper process got the
    signal that asks us to stop); only ConfigError while it is opened stops the program."""

    def __init__(self, name: str, opened: Callable[[], Sink]) -> None:
        self.name = name
        self._sink: Sink | None = None
        with self._watched():
            self._sink = opened()

    def write(self, record: Record) -> None:
        with self._watched():
            if self._sink is not None:
                self._sink.write(record)

    def close(self) -> None:
        with self._watched():
            if self._sink is not None:
                self._sink.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            self._sink = None
            warn(f"no {self.name} from here on ({first_line(error)}); metrics.jsonl has everything")


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
