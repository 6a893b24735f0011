"""Evaluation between two steps of a training, by the ranks that train, each with its own part of the network.

Ranks that hold parts of the same network (tensor ranks, and ranks that share out experts) take the same samples, so that they make the same
passes; the others share the samples. Figures are those of one process. Nothing of the training changes: no random numbers are drawn,
and no gradient is made. A run that is asked to stop does not finish it: between two tasks, where all ranks are at one place, it is put
off to the next start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from data.config import DataConfig, TaskConfig
from data.stream.source import OpenData, Source, open_data
from evaluation.base import Evaluation, check_complete
from evaluation.config import EvaluateConfig
from evaluation.kept import Row, asked_of, keep, measured_of, options_of, row_of
from evaluation.table import evaluator_of, figures_of
from evaluation.templates import read_templates
from model.objective import Objective
from parallel.checkpoints.together import on_first_rank
from parallel.health.claim import FolderError
from parallel.health.stop_signal import any_rank
from parallel.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Found:
    """figures: `SPLIT/TASK/METRIC`, or `SUITE/TASK/METRIC`, of every task and evaluation_s, the same on all ranks; none where no evaluation
    was due. seconds: those that it took. is_asked: some rank had been asked to stop when it ended. is_put_off: it was due, and was given
    up for that. measured: of each task the data and options, without which figures are not comparable."""

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    is_asked: bool = False
    is_put_off: bool = False
    measured: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row of the results: its name, the task on what is evaluated and on its training split, and the name of sentences for classes."""

    name: str
    task: TaskConfig
    training: TaskConfig
    templates: str = "none"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The same, opened. training: where its kind is compared with it."""

    name: str
    source: Source
    training: Source | None = None
    templates: str = "none"
    sentences: tuple[str, ...] = ()
    word_counts: dict[str, Counter[int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class InTraining:
    """averaged: within it the network has the weights that are evaluated; steps: of the run."""

    config: EvaluateConfig
    evaluated: tuple[Evaluated, ...]
    objective: Objective
    averaged: Callable[[], contextlib.AbstractContextManager[None]]
    mesh: Mesh
    folder: Path
    steps: int
    max_bad_fraction: float = DataConfig.max_bad_fraction

    @classmethod
    def open(
        cls,
        config: EvaluateConfig,
        data: DataConfig,
        training: OpenData,
        objective: Objective,
        averaged: Callable[[], contextlib.AbstractContextManager[None]],
        mesh: Mesh,
        folder: Path,
        steps: int,
        suite: Sequence[Asked] | None = None,
    ) -> Self:
        """suite: its tasks, in place of the run's own. Raises DatasetError, also where a part of a split is missing."""
        chosen = [task for task in data.tasks if not config.tasks or task.name in config.tasks]
        own = [Asked(task.name, task.whole(config.split), task) for task in chosen]
        pixels = training.sources[0].task.context.pixels

        def opened(task: TaskConfig) -> Source:
            return open_data(dataclasses.replace(data, tasks=(task,)), pixels, 0, training.vocabulary).sources[0]

        def evaluated(asked: Asked) -> Evaluated:
            source, other = opened(asked.task), None
            check_complete(source)
            if evaluator_of(asked.task).needs_training:
                same = [known for known in training.sources if known.task.config == asked.training]
                other = same[0] if same else opened(asked.training)
            return Evaluated(asked.name, source, other, asked.templates, read_templates(asked.templates))

        found = tuple(map(evaluated, own if suite is None else suite)) if config.every else ()
        return cls(config, found, objective, averaged, mesh, folder, steps, data.max_bad_fraction)

    @property
    def names(self) -> list[str]:
        """`TASK/METRIC` of all figures, before there are any."""
        return [f"{evaluated.name}/{name}" for evaluated in self.evaluated for name in figures_of(evaluated.source)]

    def found(
        self,
        step: int,
        tell: Callable[[str], object],
        alive: Callable[[], object],
        is_asked: Callable[[], bool] = lambda: False,
    ) -> Found:
        """Collective. tell: gets a line with the main figures; alive: called after each batch; is_asked: is this rank to stop? Raises
        DamagedDataError, StoreGoneError, and FolderError where the run's folder cannot be written."""
        if not self.config.is_due(step, self.steps):
            return Found(is_asked=any_rank((is_asked(),), self.mesh)[0])
        start = time.perf_counter()
        rows: dict[str, Row] = {}
        self.objective.eval()
        with self.averaged(), torch.random.fork_rng(devices=[]):  # starting worker processes draws a number
            for evaluated in self.evaluated:
                if any_rank((is_asked(),), self.mesh)[0]:
                    break
                rows[evaluated.name] = self._row(evaluated, alive)
        self.objective.train()
        seconds = time.perf_counter() - start
        if len(rows) < len(self.evaluated):
            tell(f"asked to stop: the evaluation of step {step:,} is put off to the next start")
            return Found(seconds=seconds, is_asked=True, is_put_off=True)
        parts = [f"{task} {row['figure']} {row['metrics'][row['figure']]:.3f}" for task, row in rows.items()]
        tell(f"{self.config.title} at step {step}: {', '.join(parts)} ({seconds:.1f} s)")
        if self.mesh.is_first:
            try:
                keep(self.folder, self.config.title, step, list(rows.values()))
            except OSError as error:
                raise FolderError(
                    f"{self.folder}: the evaluation of step {step:,} cannot be kept: {error.strerror}; mend that and start the same "
                    "command again"
                ) from error
        figures = {
            f"{self.config.title}/{task}/{name}": float(value)
            for task, row in rows.items()
            for name, value in row["metrics"].items()
        }
        # Expert ranks sum in orders of their own, so last bits may differ, and all must find the same best step.
        figures = on_first_rank(lambda: figures)
        seconds = time.perf_counter() - start
        is_stopped = any_rank((is_asked(),), self.mesh)[0]
        measured = {task: measured_of(row) for task, row in rows.items()}
        return Found(figures | {"evaluation_s": seconds}, seconds, is_stopped, measured=measured)

    def _row(self, evaluated: Evaluated, alive: Callable[[], object]) -> Row:
        start, config, source = time.perf_counter(), self.config, evaluated.source
        evaluator = evaluator_of(source.task.config)
        evaluation = Evaluation(
            objective=self.objective,
            source=source,
            training=evaluated.training,
            device=self.mesh.device,
            batch_size=config.batch_size,
            limit=config.limit or None,
            beam=config.beam,
            ranks=self.mesh.expert_data,
            workers=config.workers,
            templates=evaluated.sentences,
            alive=alive,
            max_bad_fraction=self.max_bad_fraction,
            word_counts=evaluated.word_counts,
        )
        result = evaluator.evaluate(evaluation)
        seconds = round(time.perf_counter() - start, 2)
        options, asked = options_of(evaluation, evaluated.templates), asked_of(evaluation)
        return row_of(source, result, options, evaluator.figure, evaluator.floor, seconds, evaluated.name, asked)
