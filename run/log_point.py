"""A step that is told: its evaluation, where one is due, then its record, to all sinks.

Where there is no time for the evaluation, the record waits for it in the checkpoint, and the next start begins with both. So each step
has one record, with its evaluation, however often the run is stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from typing import Any, Self

from evaluation.config import EvaluateConfig
from evaluation.in_training import InTraining
from parallel.checkpoints import Checkpoint, CheckpointError
from parallel.health.stop_signal import StopSignal
from run.metrics.meter import Record
from run.sinks.sinks import Sinks
from run.weights.best import Best


@dataclasses.dataclass(frozen=True)
class LogPoint:
    """The last one of a run. record: its figures, none before the first; is_owed: no sink has the record, which waits for its evaluation;
    stops: the run is to end here."""

    best: Best
    record: Record = dataclasses.field(default_factory=dict)
    is_owed: bool = False
    stops: bool = False

    @classmethod
    def of(cls, config: EvaluateConfig, checkpoint: Checkpoint | None, names: Collection[str]) -> Self:
        """Where a run goes on; `Best.of` has the arguments. Raises ConfigError, and CheckpointError for what is no record of its step."""
        best = Best.of(config, checkpoint, names)
        text = checkpoint.state.get("owed") if checkpoint else None
        if checkpoint is None or text is None:
            return cls(best, stops=best.has_stalled)
        try:
            record = json.loads(text)
            is_its = isinstance(record, dict) and record["step"] == checkpoint.step
        except (ValueError, TypeError, KeyError, RecursionError):
            is_its = False
        if not is_its:
            raise CheckpointError(
                f"{checkpoint.folder}: state.owed is not the record of step {checkpoint.step:,}: changed since it was written; remove "
                "the folder to go on from an earlier one"
            )
        return cls(best, record, is_owed=True)

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint. The record is text, as JSON proper has no word for what is not finite."""
        return {"best": self.best.state} | ({"owed": json.dumps(self.record)} if self.is_owed else {})

    def next(
        self,
        step: int,
        record: Callable[[float], Record],
        evaluation: InTraining,
        sinks: Sinks,
        stop: StopSignal,
        phase: Callable[[str], object],
    ) -> Self:
        """Collective. record: of the time since the last log point, less the seconds that its argument says."""
        phase("evaluate")
        found = evaluation.found(step, sinks.at(step), lambda: phase("evaluate"), lambda: stop.requested)
        phase("report")
        best = self.best.after(step, found.figures, sinks.at(step), found.measured)
        figures = record(found.seconds) | found.figures
        if not found.is_put_off:
            sinks.write(figures)
        stops = found.is_asked or best.has_stalled
        return dataclasses.replace(self, best=best, record=figures, is_owed=found.is_put_off, stops=stops)
