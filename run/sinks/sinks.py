"""All sinks of a run behind one call: the console, JSON lines and wandb."""

from __future__ import annotations

import os
from typing import Protocol

from run.config import RunConfig
from run.console import Console
from run.metrics.meter import Record
from run.sinks.json_lines import JsonLines
from run.sinks.tracking import Wandb, wanted_mode


class Sink(Protocol):
    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """All sinks on the first rank, none on the others."""

    def __init__(self, config: RunConfig, start_step: int, is_first: bool) -> None:
        self._sinks: list[Sink] = []
        self._console = Console(config, start_step) if is_first else None
        if self._console is not None:
            self._sinks = [self._console, JsonLines(config.folder / "metrics.jsonl", start_step)]
            if wanted_mode(config.tracking.wandb, os.environ) != "disabled":
                self._sinks.append(Wandb(config, config.folder))

    def write(self, record: Record) -> None:
        for sink in self._sinks:
            sink.write(record)

    def tell(self, line: str) -> None:
        """Something that happened, for the console alone."""
        if self._console is not None:
            self._console.tell(line)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
