"""What is evaluated: the run's tasks or those of a suite, with the options of the command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from data.config import DataConfig, TaskConfig
from data.shards import DatasetError, read_info
from data.shards.info import TRAINING_SPLIT
from data.stream.source import Source
from data.tasks import WRITTEN, kind_of
from data.tasks.base import LABELLED, WordTask
from data.tasks.related import as_kind
from data.transport import is_remote, local_path, shown
from evaluation.config import EvaluateConfig
from evaluation.metrics.meteor import MeteorError, meteor_command
from model.objective import NotFiniteError
from run.config import RunConfig
from run.data import check_head, check_scale
from run.errors import ConfigError
from run.evaluation.arguments import places_of_suite
from run.evaluation.suite import ASKED, as_trained, parse_suite, place_of, read_suite


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the results: its name, and a task of the network on the data that is evaluated. of_suite: its name in a suite, and
    usual: where its data lies by that; both empty for the run's own tasks."""

    name: str
    task: TaskConfig
    templates: str
    of_suite: str = ""
    usual: str = ""

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Errors of a suite's task say its name and folder: the task of the run, which they name, has other data."""
        try:
            yield
        except (DatasetError, NotFiniteError) as error:
            if self.of_suite:
                error.args = (f"suite task {self.of_suite} ({shown(self.task.path)}): {error}",)
            raise


def entries_of(arguments: argparse.Namespace, run: RunConfig) -> list[Entry]:
    """Raises ConfigError and DatasetError."""
    entries = [_with_options(entry, arguments) for entry in _all_entries(arguments, run)]
    _check_options(entries, arguments)
    for entry in entries:
        check_bounds(entry, run)
    if run.model.head_classes and any(entry.task.answer == "generate" for entry in entries):
        raise ConfigError("--answer generate: this run has a linear head, whose classes have no words to write")
    if arguments.frames != "as-is":
        entries = _of_clips(entries, arguments)
    if not arguments.probe:
        return entries
    probed = [entry for entry in entries if entry.task.kind in LABELLED]
    if not probed or (arguments.tasks and len(probed) < len(entries)):
        others = ", ".join(f"{entry.name} ({entry.task.kind})" for entry in entries if entry not in probed)
        raise ConfigError(f"--probe is for {' and '.join(LABELLED)}, not for {others}: name others by --tasks")
    for entry in probed:
        if entry.task.split == training_of(entry, run).split:
            raise ConfigError(f"--probe is fitted to split {entry.task.split} of {entry.name}: evaluate another split")
    return probed


def _is_ranked(task: TaskConfig) -> bool:
    return task.kind == "classification" and task.answer != "generate"


def _is_written(task: TaskConfig) -> bool:
    return task.kind == "captioning" or task.answer == "generate"


USED_BY: tuple[tuple[str, object, Callable[[TaskConfig], bool], str], ...] = (
    ("templates", None, _is_ranked, "classification whose names are ranked"),
    ("views", None, _is_ranked, "classification whose names are ranked"),
    ("answer", None, lambda task: task.kind in WRITTEN, " and ".join(WRITTEN)),
    ("beam", 2, _is_written, "what is written"),
    ("length_penalty", 0.0, _is_written, "what is written"),
    ("meteor", False, lambda task: task.kind == "captioning", "captioning"),
)
"""Options of the command line, their defaults, the tasks that they change, and what these are called."""


def _check_options(entries: list[Entry], arguments: argparse.Namespace) -> None:
    """Raises ConfigError where an option would change no task."""
    for name, default, is_used, what in USED_BY:
        value = getattr(arguments, name)
        if value != default and not any(is_used(entry.task) for entry in entries):
            others = ", ".join(f"{entry.name} ({entry.task.kind})" for entry in entries)
            raise ConfigError(f"--{name.replace('_', '-')} changes nothing: it is for {what}, not for {others}")
    if arguments.meteor:
        try:
            meteor_command()
        except MeteorError as error:
            raise ConfigError(f"--meteor: {error}") from error


def check_bounds(entry: Entry, run: RunConfig) -> None:
    """Raises ConfigError where options do not go with the kind or with the network."""
    task = as_kind(entry.task, entry.task.kind, "")
    data = dataclasses.replace(run.data, tasks=(task,), vocabulary_sample=0)
    try:
        dataclasses.replace(run, data=data, evaluate=EvaluateConfig())
    except ValueError as error:
        what = f"suite task {entry.of_suite}" if entry.of_suite else f"task {task.name}"
        raise ConfigError(f"{what}: {str(error).removeprefix(f'task {task.name}: ')}") from error


def check_fits(entry: Entry, source: Source, trained: RunConfig) -> None:
    """Raises ConfigError where the network cannot compare inputs with the classes of this data."""
    check_head(trained, source.task.context.info.classes, entry.of_suite or source.name)
    check_scale(trained, source, entry.of_suite or source.name)


def _of_clips(entries: list[Entry], arguments: argparse.Namespace) -> list[Entry]:
    """Those whose frames can be rearranged, under names of their own. Raises ConfigError and DatasetError."""
    kinds = [read_info(entry.task.path).kind for entry in entries]
    found = [e for e, kind in zip(entries, kinds, strict=True) if kind.startswith("video") and e.task.num_frames > 1]
    if not found or (arguments.tasks and len(found) < len(entries)):
        others = ", ".join(
            f"{entry.name} ({kind}{', num_frames=1' if kind.startswith('video') else ''})"
            for entry, kind in zip(entries, kinds, strict=True)
            if entry not in found
        )
        raise ConfigError(
            f"--frames {arguments.frames} is for clips of several frames, not for {others}: name others by --tasks"
        )
    return [dataclasses.replace(entry, name=f"{entry.name}, {arguments.frames} frames") for entry in found]


def _with_options(entry: Entry, arguments: argparse.Namespace) -> Entry:
    """Of the command line. Features of a probe are those of one view, read where names are ranked; what is written has one view.
    Sentences are for names of what a picture or clip shows."""
    task, name, answer = entry.task, entry.name, "rank" if arguments.probe else arguments.answer
    if answer and task.kind in WRITTEN:
        name = name if arguments.probe else f"{name}, {'written' if answer == 'generate' else 'ranked'}"
        task = dataclasses.replace(task, answer=answer)  # type: ignore[arg-type]
    views = (1, 1) if arguments.probe or task.answer == "generate" else arguments.views
    if views and task.kind == "classification":
        name = f"{name}, {views[0]}x{views[1]} views" if arguments.views else name
        task = dataclasses.replace(task, views=views)
    templates = (arguments.templates or entry.templates) if _is_ranked(task) else "none"
    return dataclasses.replace(entry, name=name, task=task, templates=templates)


def _all_entries(arguments: argparse.Namespace, run: RunConfig) -> list[Entry]:
    if arguments.suite:
        places = dict(override.split(".path=", 1) for override in places_of_suite(arguments))
        answer = "rank" if arguments.probe else arguments.answer or ""
        return entries_of_suite(arguments.suite, places, arguments.tasks or (), run, answer)
    by_name = {task.name: task for task in run.data.tasks}
    wanted = arguments.tasks or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ConfigError(f"{arguments.run} has no task {unknown[0]!r}; its tasks are {', '.join(by_name)}")
    tasks = [by_name[name].whole(arguments.split) for name in wanted]
    return [Entry(task.name, task, "none") for task in tasks]


def entries_of_suite(
    suite: str, places: Mapping[str, str], wanted: Sequence[str], run: RunConfig, answer: str = ""
) -> list[Entry]:
    """places: of its data, where they were said anew; answer: of tasks that may be written. Raises ConfigError, also where data is
    missing."""
    usual = {task.name: place_of(task.path) for task in parse_suite(suite).tasks}
    entries = []
    for asked in read_suite(suite, places, wanted).tasks:
        task = as_trained(asked, run.data.tasks, answer if asked.kind in WRITTEN else "")
        templates = asked.templates if _is_ranked(task) else "none"
        entries.append(Entry(asked.name, task, templates, asked.name, usual[asked.name]))
    return entries


OF_READING = ("word_end", "cache_dir", "cache_gib", "shuffle_window", "allow_pipe", "max_bad_fraction")
INSTEAD = {
    "split": "name it by --split",
    "shots": "--shots of a --probe",
    "fraction": "--fraction of a --probe",
    "shards": "name a folder that has them as data.tasks.NAME.path",
    "workers": "use --workers",
}
"""Options of the data that an evaluation reads, and what to say in place of others."""


def check_said(run: RunConfig, trained: RunConfig, uses_training: bool) -> None:
    """Raises ConfigError where an option of the run that was said anew would change nothing. uses_training: the run's own training split
    is read, too, from its `shards`."""
    pairs = [
        (f"data.tasks.{own.name}.", now, own) for now, own in zip(run.data.tasks, trained.data.tasks, strict=False)
    ]
    used = {"path", *ASKED} | ({"shards"} if uses_training else set())
    of_tasks = [(f"{name}{key}", key) for name, *both in pairs for key in _differing(*both) if key not in used]
    of_data = [(f"data.{key}", key) for key in _differing(run.data, trained.data) if key not in ("tasks", *OF_READING)]
    for name, key in [*of_tasks, *of_data]:
        raise ConfigError(f"{name} changes nothing in an evaluation: {INSTEAD.get(key, 'leave it out')}")


def _differing(one: TaskConfig | DataConfig, other: TaskConfig | DataConfig) -> list[str]:
    return [field.name for field in dataclasses.fields(one) if getattr(one, field.name) != getattr(other, field.name)]


def is_other_data(entry: Entry, source: Source, trained: RunConfig, opened: Callable[[TaskConfig], Source]) -> bool:
    """Whether a place that was said anew holds other data than the usual one; where that is gone it is taken for the same, moved."""
    own = next((task.path for task in trained.data.tasks if task.name == entry.task.name), entry.task.path)
    usual = entry.usual or own
    if _absolute(usual) == _absolute(entry.task.path):
        return False
    with contextlib.suppress(DatasetError):
        return opened(dataclasses.replace(entry.task, path=usual)).digest != source.digest
    return False


def bases_of(entries: list[Entry]) -> str:
    """One line that says which tasks of the run have lent a suite their options; empty where the names are the same."""
    parts = [f"{e.of_suite} as {e.task.name}" for e in entries if e.of_suite not in ("", e.task.name)]
    return f"with the options of the run's tasks: {', '.join(parts)}" if parts else ""


def said_anew(entry: Entry, run: RunConfig, trained: RunConfig, is_other_data: bool) -> str:
    """What the name of a row says of data and options that are not those of the run as it was trained, so that it stands beside the
    row of these."""
    now, own = ({task.name: task for task in r.data.tasks}.get(entry.task.name) for r in (run, trained))
    parts = ["other data"] if is_other_data else []
    if now and own:
        parts += [f"{key} {getattr(now, key)}" for key in ASKED if getattr(now, key) != getattr(own, key)]
    if run.data.word_end != trained.data.word_end and issubclass(kind_of(entry.task), WordTask):
        parts.append(f"word_end {run.data.word_end}")
    return "".join(f", {part}" for part in parts)


def training_of(entry: Entry, run: RunConfig) -> TaskConfig:
    """The training split that an evaluation is compared with, read as the evaluated one: the run's own, where it is of the same data."""
    trained = next((task for task in run.data.tasks if task.name == entry.task.name), entry.task)
    if _absolute(trained.path) != _absolute(entry.task.path):
        return dataclasses.replace(entry.task, split=TRAINING_SPLIT)
    return dataclasses.replace(
        entry.task, split=trained.split, shards=trained.shards, shots=trained.shots, fraction=trained.fraction
    )


def _absolute(path: str) -> str:
    """A run keeps absolute paths, a suite may have relative ones."""
    return path if is_remote(path) else os.path.abspath(local_path(path))
