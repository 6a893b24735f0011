"""Suites of evaluations: which data, by which kind of task, and what makes the data where it is missing.

configs/suites/NAME.yaml:
    about: what the suite is
    tasks:
      - name: cifar10                        of the row
        kind: classification
        path: data_real/cifar10
        split: val                           the default
        like: ""                             a task of the run whose options it takes; by default one of the same name or kind
        templates: none                      sentences for class names, of classification
        options: {max_text: 8}               of the task, where they differ
        prepare: python -m data.prepare ...  told where the data is missing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from data.config import TaskConfig
from data.shards.files import INFO_FILE
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


def read_suite(name: str, paths: Mapping[str, str], wanted: Sequence[str] = ()) -> Suite:
    """A file, or a suite of configs/suites by its name. paths: other places of the data, by task. wanted: names of its tasks, () is all.
    Raises ConfigError, also where data is missing."""
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
    unknown = [task for task in (*paths, *wanted) if task not in names]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"suite {path}: {f'no task {unknown[0]!r}' if unknown else 'names must be unique'}; it has {', '.join(names)}"
        )
    chosen = [task for task in suite.tasks if not wanted or task.name in wanted]
    tasks = tuple(dataclasses.replace(task, path=paths.get(task.name, task.path)) for task in chosen)
    for task in tasks:
        if not is_remote(task.path) and not (expanded(task.path) / INFO_FILE).is_file():
            how = f"; to make it: {task.prepare}" if task.prepare else ""
            raise ConfigError(
                f"suite {suite.name}: {task.name} needs the data set {task.path}, which is not there{how}"
            )
    return dataclasses.replace(suite, tasks=tasks)


def as_trained(task: SuiteTask, trained: Sequence[TaskConfig]) -> TaskConfig:
    """The task with the options of one that the run has trained, and its name, which routers may know. Raises ConfigError."""
    known = [t for t in trained if t.name == task.like] if task.like else list(trained)
    known.sort(key=lambda t: t.name != task.name)
    base = next((t for kind in RELATED.get(task.kind, ()) for t in known if t.kind == kind), None)
    if base is None:
        there = ", ".join(f"{t.name} ({t.kind})" for t in trained)
        raise ConfigError(f"suite task {task.name}: no task of the run serves {task.kind!r}; it has {there}")
    fields = {field.name for field in dataclasses.fields(TaskConfig)}
    unknown = [key for key in task.options if key not in fields]
    if unknown:
        raise ConfigError(f"suite task {task.name}: there is no option {unknown[0]!r} of tasks")
    if task.templates != "none" and task.kind != "classification":
        raise ConfigError(
            f"suite task {task.name}: templates={task.templates} are for classification of pictures and clips, not for {task.kind}: "
            "leave it out"
        )
    path = task.path if is_remote(task.path) else str(expanded(task.path))
    options: dict[str, Any] = {"kind": task.kind, "path": path}
    # What its own kind alone may have.
    others = {} if base.kind == task.kind else {"answer": "rank", "views": (1, 1)}
    options |= {"label_smoothing": 0.0, "loss": "softmax"} | others | dict(task.options)
    whole = dataclasses.asdict(base.whole(task.split))
    try:
        return pydantic.TypeAdapter(TaskConfig).validate_python(whole | options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"suite task {task.name}: {str(error).splitlines()[-1]}") from error
