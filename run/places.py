"""Paths of a configuration. A place is not what a thing is: `~` is a folder, and a run folder names data wherever it is read from."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from data.transport import is_remote, local_path
from run.config import RunConfig
from run.errors import ConfigError


def expanded(path: str | Path) -> Path:
    """With the home folder for a leading ~. Raises ConfigError where there is none."""
    found = os.path.expanduser(path)
    if str(found).startswith("~") and str(path).partition("/")[0] == "~":
        raise ConfigError(f"{path}: ~ means nothing here, as HOME is not set: write the whole path")
    return Path(found)


def with_expanded(run: RunConfig) -> RunConfig:
    """Home folders in place of ~. The cache, which few runs use, lies with other temporary files where there is none."""
    return _mapped(run, lambda path: str(expanded(path)), _cache_place)


def _cache_place(path: str) -> str:
    found = os.path.expanduser(path)
    return os.path.join(tempfile.gettempdir(), found[1:].lstrip("/")) if found.startswith("~") else found


def with_absolute(run: RunConfig) -> RunConfig:
    """The same run for a reader with another working directory."""
    return _mapped(run, os.path.abspath, os.path.abspath)


def _mapped(run: RunConfig, change: Callable[[str], str], change_cache: Callable[[str], str]) -> RunConfig:
    def place(path: str) -> str:
        if not path or is_remote(path):
            return path
        if path.startswith("@"):  # a list of shards
            return f"@{place(path[1:])}"
        return change(local_path(path))

    tasks = tuple(
        dataclasses.replace(task, path=place(task.path), shards=tuple(map(place, task.shards)))
        for task in run.data.tasks
    )
    engine, suite = run.parallel.deepspeed, run.evaluate.suite
    is_file = is_path(suite) or suite.endswith(".yaml")
    return dataclasses.replace(
        run,
        runs=place(run.runs),
        init=place(run.init),
        evaluate=dataclasses.replace(run.evaluate, suite=place(suite) if is_file else suite),
        data=dataclasses.replace(run.data, tasks=tasks, cache_dir=change_cache(run.data.cache_dir)),
        parallel=dataclasses.replace(run.parallel, deepspeed=place(engine) if is_path(engine) else engine),
    )


def is_path(engine: str) -> bool:
    """Whether `parallel.deepspeed` or a suite names a file, and not one of this program's own settings."""
    return "/" in engine or engine.endswith(".json")
