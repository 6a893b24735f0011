"""Where a run's records go: a progress line, JSON lines and wandb.

`metrics.jsonl` in the run folder is the truth, wandb and the bar are views of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data.transport import shown
from parallel.checkpoints import write_atomically
from run.config import RunConfig
from run.config_file import dump_config
from run.console import Console
from run.meter import Record


class Sink(Protocol):
    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl; on resume, records after the checkpoint's step are dropped so that each step stands once."""

    def __init__(self, path: Path, start_step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start_step]
            write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        self._file.close()


class Wandb:
    """One wandb run; a resumed training goes on under the same id, kept in the run folder. Never stops the training: what it raises
    becomes one warning, and the end of it (its helper process may have got the signal that asks us to stop)."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._run: Any = None
        with self._guarded():
            self._run = self._start(config, folder)

    def write(self, record: Record) -> None:
        flat: Record = {}
        for key, value in record.items():
            flat |= _numbered(key, value)
        with self._guarded():
            if self._run is not None:
                self._run.log(flat)

    def close(self) -> None:
        with self._guarded():
            if self._run is not None:
                self._run.finish()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            print(
                f"warning: no wandb from here on ({_first_line(error)}); metrics.jsonl has everything", file=sys.stderr
            )

    @staticmethod
    def _start(config: RunConfig, folder: Path) -> Any:
        import wandb

        path = folder / "wandb_id"
        if not path.exists():
            write_atomically(path, secrets.token_hex(4))
        run = wandb.init(
            project=config.tracking.project,
            name=config.name,
            id=path.read_text().strip(),
            resume="allow",
            mode=config.tracking.wandb,
            dir=str(folder),
            config={"yaml": dump_config(without_credentials(config))},
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="step")
        return run


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def without_credentials(config: RunConfig) -> RunConfig:
    """What may leave the machine: URLs without user, password and query, commands without arguments."""
    tasks = tuple(
        dataclasses.replace(task, path=shown(task.path), shards=tuple(map(shown, task.shards)))
        for task in config.data.tasks
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=tasks))


def _numbered(key: str, value: Any) -> Record:
    """Lists as one entry per element: wandb draws numbers alone."""
    if not isinstance(value, list):
        return {key: value}
    flat: Record = {}
    for index, item in enumerate(value):
        flat |= _numbered(f"{key}/{index}", item)
    return flat


class Sinks:
    """All sinks on the first rank, none on the others."""

    def __init__(self, config: RunConfig, start_step: int, is_first: bool) -> None:
        self._sinks: list[Sink] = []
        self._console = Console(config, start_step) if is_first else None
        if self._console is not None:
            self._sinks = [self._console, JsonLines(config.folder / "metrics.jsonl", start_step)]
            if config.tracking.wandb != "disabled":
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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash
