"""All sinks of a run behind one call: the console, JSON lines, and what else `tracking` asks for."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

from run.config import RunConfig, TrackingConfig
from run.console import Console
from run.environment import environment
from run.errors import ConfigError
from run.metrics.meter import Record
from run.sinks.events import Events, Kind
from run.sinks.guarded import Guarded, Sink
from run.sinks.json_lines import JsonLines
from run.sinks.tracking import Wandb, wanted_mode


class Sinks:
    """All sinks on the first rank, none on the others."""

    def __init__(self, config: RunConfig, start_step: int, is_first: bool, is_owed: bool = False) -> None:
        """start_step: records after it, of a start that ended badly, are dropped. is_owed: that of the step itself is still to come.
        Raises ConfigError."""
        told = start_step - is_owed
        self._config, self._step = config, told
        self._events = Events(config.folder)
        self._sinks: list[Sink] = []
        self._tables: dict[str, JsonLines] = {}
        if is_first:
            check_packages(config.tracking)
        self._console = Console(config, start_step) if is_first else None
        if self._console is not None:
            self._sinks = [
                self._console,
                JsonLines(config.folder / "metrics.jsonl", told),
                *_views(config, told),
            ]
            if config.model.num_decisions:
                self._tables["expert_use"] = JsonLines(config.folder / "expert_use.jsonl", told)
            start = f"continues at step {start_step:,}" if start_step else "starts"
            self._events.write("resume" if start_step else "start", start_step, start, **environment(config.parallel))

    def write(self, record: Record) -> None:
        """What is a table has a file of its own, and no sink shows it."""
        for key, table in self._tables.items():
            if key in record:
                table.write(record[key])
        figures = {key: value for key, value in record.items() if key not in self._tables}
        for sink in self._sinks:
            sink.write(figures)
        self._step = record["step"]
        for alarm in record.get("alarms", ()):
            self.tell(alarm, "alarm")
        if self._console is not None and record.get("skipped_steps"):
            skipped = f"{record['skipped_steps']} updates were left out: their gradients were not finite"
            self._events.write("skipped", self._step, skipped)

    def tell(self, line: str, kind: Kind = "note", step: int | None = None) -> None:
        """Something that happened: on the console, and among the events with its step, or that of the last record."""
        if self._console is not None:
            self._console.tell(f"alarm: {line}" if kind == "alarm" else line)
            self._events.write(kind, self._step if step is None else step, line)

    def at(self, step: int) -> Callable[[str], None]:
        """`tell` of what happens at this step."""
        return functools.partial(self.tell, step=step)

    def close(self, diverged: bool = False) -> None:
        if self._console is not None:
            is_done = self._step >= self._config.steps
            ends: tuple[Kind, str] = ("end", "finished") if is_done else ("stop", "stopped and saved")
            if diverged:
                ends = ("diverged", "the loss or its gradient is not finite")
            self._events.write(ends[0], self._step, ends[1])
        for sink in (*self._sinks, *self._tables.values()):
            sink.close()


def check_packages(tracking: TrackingConfig) -> None:
    """Raises ConfigError where a sink is asked for whose package is missing."""
    wanted = (
        ("tensorboard", tracking.tensorboard, "tensorboard"),
        ("prometheus", bool(tracking.prometheus), "prometheus_client"),
    )
    for option, is_wanted, package in wanted:
        if is_wanted and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"tracking.{option} needs the package {package}, which is not installed: pip install -e '.[{option}]', or leave "
                "the option out"
            )


def _views(config: RunConfig, start_step: int) -> list[Guarded]:
    """Their libraries are imported only where they are wanted."""
    tracking = config.tracking
    views = []
    if wanted_mode(tracking.wandb, os.environ) != "disabled":
        views.append(Guarded("wandb", lambda: Wandb(config, config.folder)))
    if tracking.tensorboard:
        from run.sinks.tensorboard import TensorBoard

        views.append(Guarded("TensorBoard", lambda: TensorBoard(config, start_step)))
    if tracking.prometheus:
        from run.sinks.prometheus import Prometheus

        views.append(Guarded("Prometheus", lambda: Prometheus(config, start_step)))
    return views
