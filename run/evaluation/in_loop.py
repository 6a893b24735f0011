"""What is evaluated while a run trains: its own tasks, or those of a suite as `evaluate.py --suite` has them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from data.stream.source import OpenData
from evaluation.in_training import Asked, InTraining
from model.objective import Objective
from parallel.mesh import Mesh
from run.config import RunConfig
from run.evaluation.entries import check_bounds, check_fits, entries_of_suite, training_of


def evaluation_of(
    run: RunConfig,
    data: OpenData,
    objective: Objective,
    averaged: Callable[[], contextlib.AbstractContextManager[None]],
    mesh: Mesh,
) -> InTraining:
    """Raises ConfigError, also where data of a suite is missing, and DatasetError."""
    config = run.evaluate
    entries = entries_of_suite(config.suite, {}, config.tasks, run) if config.suite else []
    for entry in entries:
        check_bounds(entry, run)
    suite = [Asked(e.name, e.task, training_of(e, run), e.templates) for e in entries] if config.suite else None
    evaluation = InTraining.open(config, run.data, data, objective, averaged, mesh, run.folder, run.steps, suite)
    of_suite = evaluation.evaluated if entries else ()
    for entry, evaluated in zip(entries, of_suite, strict=True):
        check_fits(entry, evaluated.source, run)
    return evaluation
