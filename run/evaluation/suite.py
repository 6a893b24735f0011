"""Suites of evaluations: which data, by which kind of task, and what makes the data where it is missing.

configs/suites/NAME.yaml:
    about: what the suite is
    tasks:
      - name: cifar10                        of the row
        kind: classification
        path: data_real/cifar10
        split: val                           the default
        like: ""                             a task of the run whose options it takes; by default one of the same kind: by name, or medium
        templates: none                      sentences for class names, of classification
        options: {max_text: 8}               of the task, where they differ; those of ASKED
        prepare: python -m data.prepare ...  told where the data is missing
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from data.config import TaskConfig
from data.shards import DatasetError, read_info
from data.shards.files import INFO_FILE
from data.tasks.related import as_kind
from data.transport import is_remote
from run.config import neighbours
from run.errors import ConfigError
from run.places import expanded, is_path
from run.strict_text import TextError, read_yaml, typed

SUITES = Path(__file__).resolve().parents[2] / "configs" / "suites"
RELATED = {
    "classification": ("classification", "retrieval", "captioning"),
    "text_classification": ("text_classification", "masked_text"),
    "retrieval": ("retrieval", "classification", "captioning"),
    "captioning": ("captioning",),
    "masked_text": ("masked_text",),
    "vqa": ("vqa", "captioning"),
}
"""Kinds of trained tasks whose options serve a kind that the run has not, the nearest first."""
ASKED = (
    "max_text",
    "num_frames",
    "frame_sampling",
    "frame_stride",
    "views",
    "mask_rate",
    "mask_shares",
    "temperature",
    "template",
    "answer",
)
"""Options of a task that change the figures of a network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """See the module."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    name: str
    kind: str
    path: str
    split: str = "val"
    like: str = ""
    templates: str = "none"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepare: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    name: str
    tasks: tuple[SuiteTask, ...]
    about: str = ""


def parse_suite(name: str) -> Suite:
    """A file, or a suite of configs/suites by its name. Raises ConfigError."""
    path = expanded(name) if is_path(name) or name.endswith(".yaml") else SUITES / f"{name}.yaml"
    try:
        raw = typed(Suite, read_yaml(path.read_bytes()))
        suite = pydantic.TypeAdapter(Suite).validate_python({"name": path.stem} | raw)
    except OSError as error:
        raise ConfigError(f"suite {path}: {error.strerror}; there are {neighbours(path)}") from error
    except (TextError, TypeError) as error:
        raise ConfigError(f"suite {path}: {error}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"suite {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    names = [task.name for task in suite.tasks]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"suite {path}: names must be unique; it has {', '.join(names)}")
    return suite


def read_suite(name: str, paths: Mapping[str, str], wanted: Sequence[str] = ()) -> Suite:
    """paths: other places of the data, by task. wanted: names of its tasks, () is all. Raises ConfigError, also where data is missing."""
    suite = parse_suite(name)
    names = [task.name for task in suite.tasks]
    unknown = [task for task in (*paths, *wanted) if task not in names]
    if unknown:
        raise ConfigError(f"suite {suite.name}: no task {unknown[0]!r}; it has {', '.join(names)}")
    chosen = [task for task in suite.tasks if not wanted or task.name in wanted]
    tasks = tuple(dataclasses.replace(task, path=paths.get(task.name, task.path)) for task in chosen)
    for task in tasks:
        if not is_remote(task.path) and not (expanded(task.path) / INFO_FILE).is_file():
            how = f"; to make it: {task.prepare}" if task.prepare else ""
            raise ConfigError(
                f"suite {suite.name}: {task.name} needs the data set {task.path}, which is not there{how}"
            )
    return dataclasses.replace(suite, tasks=tasks)


def as_trained(task: SuiteTask, trained: Sequence[TaskConfig], answer: str = "") -> TaskConfig:
    """The task with the options of one that the run has trained, and its name, which routers may know. answer: said on the command line.
    Raises ConfigError."""
    base = _base_of(task, trained)
    unknown = [key for key in task.options if key not in ASKED]
    if unknown:
        raise ConfigError(
            f"suite task {task.name}: options: {unknown[0]!r} is none that a suite may set; these are {', '.join(ASKED)}"
        )
    if task.templates != "none" and task.kind != "classification":
        raise ConfigError(
            f"suite task {task.name}: templates={task.templates} are for classification of pictures and clips, not for {task.kind}: "
            "leave it out"
        )
    medium = (_medium_of(base.path) or _medium_of(task.path)) if task.kind != base.kind else ""
    config = as_kind(base.whole(task.split), task.kind, medium)
    if (answer or task.options.get("answer", config.answer)) == "generate":  # words have a scale of their own
        config = dataclasses.replace(config, temperature=base.temperature)
    try:
        return pydantic.TypeAdapter(TaskConfig).validate_python(
            dataclasses.asdict(config) | {"path": place_of(task.path)} | dict(task.options)
        )
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ").removeprefix(f"task {base.name}: ")
        raise ConfigError(f"suite task {task.name}: options: {where}{said}") from error


def place_of(path: str) -> str:
    """A folder with the home folder for a leading ~, or a URL. Raises ConfigError."""
    return path if is_remote(path) else str(expanded(path))


def _base_of(task: SuiteTask, trained: Sequence[TaskConfig]) -> TaskConfig:
    """Of the nearest kind the task of the same name, or else one of the same medium: clips have other options than pictures. Raises
    ConfigError."""
    known = [t for t in trained if t.name == task.like] if task.like else trained
    by_kind = [[t for t in known if t.kind == kind] for kind in RELATED.get(task.kind, ())]
    served = next(filter(None, by_kind), [])
    if not served:
        there = ", ".join(f"{t.name} ({t.kind})" for t in trained)
        raise ConfigError(f"suite task {task.name}: no task of the run serves {task.kind!r}; it has {there}")
    named = [t for t in served if t.name == task.name]
    if named or len(served) == 1:
        return (named or served)[0]
    medium, media = _medium_of(task.path), [_medium_of(t.path) for t in served]
    # One whose data is gone may be of the same medium, and one of another is not.
    alike = [t for wanted in (medium, "") for t, found in zip(served, media, strict=True) if found == wanted]
    return (alike or served)[0] if medium else served[0]


def _medium_of(path: str) -> str:
    """image, video or text; empty where the data set is not there."""
    with contextlib.suppress(DatasetError):
        return read_info(place_of(path)).kind.partition("_")[0]
    return ""
