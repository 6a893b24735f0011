"""The data of a run, and what of it must fit the network: vocabulary, logit scales and linear head."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from data.shards import DatasetError, read_info
from data.stream.source import OpenData, Source, open_data, read_vocabulary
from data.tasks.base import Pixels
from data.text.vocabulary import Vocabulary
from model.exchange.export.folder import is_export
from parallel.checkpoints import published
from run.config import RunConfig
from run.errors import ConfigError
from run.folder import VOCABULARY, is_run, read_run, read_vocabulary_file


def vocabulary_of(run: RunConfig) -> Vocabulary:
    """That of the run that `init` names, where data.vocabulary says so, or what follows from the data. Raises ConfigError."""
    if run.data.vocabulary != "init":
        return read_vocabulary(run.data)
    if published(run.folder / "checkpoints"):  # it goes on
        return read_run(run.folder)[1]
    if is_export(Path(run.init)):
        return read_vocabulary_file(Path(run.init) / VOCABULARY)
    if not is_run(Path(run.init)):
        raise ConfigError(
            f"data.vocabulary=init needs init= a run or export, and init={run.init!r} is none: use full or restricted"
        )
    return read_run(Path(run.init))[1]


def open_run_data(run: RunConfig) -> OpenData:
    """The data of all tasks. Raises ConfigError where `init` is not there or the linear head does not fit, and what open_data raises."""
    if run.init and not Path(run.init).exists() and not is_run(run.folder):
        raise ConfigError(f"init={run.init}: there is no such run, export or file; say where yours is with init=PLACE")
    pixels = Pixels(run.model.image_size, run.model.patch)
    data = open_data(run.data, pixels, run.seed, vocabulary_of(run))
    _check_chunks(run, data)
    for source in data.sources:
        check_scale(run, source, f"task {source.name}")
    classes, task = run.model.head_classes, run.data.tasks[0]
    if classes:
        if len(data.sources) > 1 or "classification" not in task.kind or task.answer != "rank":
            raise ConfigError(
                f"model.head_classes={classes} needs a single task, of a kind of classification, whose names are ranked"
            )
        found = len(data.sources[0].task.context.info.classes)
        if found != classes:
            raise ConfigError(f"model.head_classes={classes}: task {task.name} has {found} classes; set it to that")
    return data


def _check_chunks(run: RunConfig, data: OpenData) -> None:
    """Raises ConfigError where a batch or its class names have fewer rows than parts."""
    for source in data.sources:
        task, names = source.task.config, len(source.task.context.info.classes)
        rows = {"samples of a micro-batch": task.batch_size if not task.batch_tokens else run.model.chunks}
        if names and task.answer == "rank" and task.candidates != "sharded" and not run.model.head_classes:
            rows["class names"] = names
        for what, count in rows.items():
            if count < run.model.chunks:
                raise ConfigError(
                    f"model.chunks={run.model.chunks} is more than the {count} {what} of task {source.name}: lower it"
                )


def check_scale(run: RunConfig, source: Source, name: str) -> None:
    """Raises ConfigError where the network has not the logit scale that a task asks for; name: of who asks."""
    scale, scales = source.task.temperature, run.model.temperatures
    if scale not in scales:
        raise ConfigError(
            f"{name}: its logit scale {scale!r} is not among model.temperatures={list(scales)}: name one of these, "
            f"data.tasks.{source.name}.temperature={scales[0]}"
        )


def check_head(run: RunConfig, classes: Sequence[str], name: str) -> None:
    """Raises ConfigError where a run's linear head would be asked about other classes than those that it was trained on, or in another
    order; run: as it was trained; name: of who asks. Where the data set of the run is gone, their number alone is known."""
    if not run.model.head_classes:
        return
    task, trained = run.data.tasks[0], classes
    with contextlib.suppress(DatasetError):
        trained = read_info(task.path).classes
    if len(classes) != run.model.head_classes or tuple(classes) != tuple(trained):
        raise ConfigError(
            f"{name}: the linear head of {run.name} knows the {run.model.head_classes} classes of task {task.name} alone, in their order; "
            "leave other tasks, names and data out, or probe the features (--probe)"
        )
