"""The data side of a run's configuration: one of its tasks, its vocabulary, and how images are cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pydantic
import yaml

from data.config import DataConfig, TaskConfig
from data.shards import DatasetError
from data.tasks import check_tasks
from data.tasks.base import Pixels
from data.transport import NotText, text_of

REMEDY = "give the config.yaml of the run's folder, in which everything is resolved"


@dataclasses.dataclass(frozen=True)
class RunFile:
    data: DataConfig
    task: TaskConfig
    pixels: Pixels


def read_run_file(path: Path, task: str) -> RunFile:
    """`data:` and the pixels of `model:`; the rest of the file is not looked at. Raises DatasetError."""
    try:
        raw = yaml.safe_load(text_of(path.read_bytes(), str(path)))
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except NotText as error:
        raise DatasetError(str(error)) from error
    except yaml.YAMLError as error:
        raise DatasetError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or "base" in raw:
        raise DatasetError(f"{path}: builds on another file, or is not a run's config; {REMEDY}")
    data = _parse(path, "data", DataConfig, raw.get("data"))
    model = raw.get("model") or {}
    pixels = _parse(path, "model", Pixels, {key: model[key] for key in ("image_size", "patch") if key in model})
    try:
        check_tasks(data)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; {REMEDY}") from error
    for config in data.tasks:
        if config.name == task:
            return RunFile(data, config, pixels)
    raise DatasetError(f"{path}: no task {task!r}; there are {', '.join(config.name for config in data.tasks)}")


def _parse(path: Path, key: str, kind: Any, raw: Any) -> Any:
    try:
        return pydantic.TypeAdapter(kind).validate_python(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (key, *first["loc"]))
        raise DatasetError(f"{path}: {where}: {first['msg']} (found {str(first['input'])[:80]!r}); {REMEDY}") from error
