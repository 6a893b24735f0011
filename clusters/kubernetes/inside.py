"""A run as its pods see it: places in the container, and what of it must not stand in a ConfigMap."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from data.transport import is_remote, local_path, shown
from data.transport.urls import masked
from run.config import RunConfig
from run.config_file import dump_config, parse_config
from run.errors import ConfigError
from run.places import is_path

CONFIG, ENGINE = "run.yaml", "engine.json"
CONFIG_FOLDER, RUNS, CACHE = "/config", "/runs", "/cache"
PORTS = {"http": 80, "https": 443, "s3": 443, "gs": 443, "gcs": 443, "az": 443, "abfs": 443, "hf": 443}
HTTPS = 443


def run_inside(run: RunConfig, data_path: str, has_data: bool) -> RunConfig:
    """Raises ConfigError for a path with a password, and for local data where no volume has any."""
    tasks = []
    for task in run.data.tasks:
        for place in (task.path, *task.shards):
            _check_public(f"task {task.name}", place)
            if place and not _is_remote(place) and not has_data:
                raise ConfigError(
                    f"task {task.name}: {place} is a local path, and pods have no data: name a volume claim with --data-claim="
                )
        shards = tuple(_placed(shard, data_path) for shard in task.shards)
        tasks.append(dataclasses.replace(task, path=_placed(task.path, data_path), shards=shards))
    _check_public("init", run.init)
    prometheus = run.tracking.prometheus
    return dataclasses.replace(
        run,
        runs=RUNS,
        init=_init(run, data_path, has_data),
        data=dataclasses.replace(run.data, tasks=tuple(tasks), cache_dir=CACHE),
        tracking=dataclasses.replace(run.tracking, prometheus=prometheus and _placed(prometheus, RUNS)),
    )


def config_files(inside: RunConfig) -> dict[str, str]:
    """Of the ConfigMap: the configuration, and DeepSpeed's settings where they are a file of the user's."""
    engine = inside.parallel.deepspeed
    if not is_path(engine):
        return {CONFIG: config_text(inside)}
    try:
        text = Path(engine).read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"parallel.deepspeed: {engine} cannot be read: {error}") from error
    parallel = dataclasses.replace(inside.parallel, deepspeed=f"{CONFIG_FOLDER}/{ENGINE}")
    return {CONFIG: config_text(dataclasses.replace(inside, parallel=parallel)), ENGINE: text}


def config_text(run: RunConfig) -> str:
    """What the run says besides defaults, as a person would write it."""
    said = json.loads(json.dumps(_said(run)))
    if parse_config(said, CONFIG) != run:
        return dump_config(run)
    return yaml.safe_dump(said, sort_keys=False, default_flow_style=None, width=120)


def _said(options: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults."""
    found = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _said(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def outside_ports(run: RunConfig) -> Iterator[int]:
    for task in run.data.tasks:
        for place in (task.path, *task.shards):
            if _is_remote(place):
                try:
                    parts = urlsplit(place.removeprefix("@"))
                    yield parts.port or PORTS.get(parts.scheme, HTTPS)
                except ValueError as error:
                    raise ConfigError(f"task {task.name}: {shown(place)} is no URL: {error}") from error
    if run.tracking.wandb == "online":
        yield HTTPS


def _is_remote(place: str) -> bool:
    return is_remote(place.removeprefix("@"))


def _placed(place: str, folder: str) -> str:
    """A relative local path begins at the folder."""
    if place.startswith("@"):
        return f"@{_placed(place[1:], folder)}"
    if not place or is_remote(place):
        return place
    return str(PurePosixPath(folder) / local_path(place))


def _init(run: RunConfig, data_path: str, has_data: bool) -> str:
    """Another run lies beside this one."""
    if not run.init or is_remote(run.init):
        return run.init
    init = PurePosixPath(run.init)
    if init.is_relative_to(run.runs):
        return str(RUNS / init.relative_to(run.runs))
    if not has_data:
        raise ConfigError(
            f"init={run.init} is neither a run of runs={run.runs} nor in a volume: name a volume claim that holds it with --data-claim="
        )
    return _placed(run.init, data_path)


def _check_public(what: str, place: str) -> None:
    bare = place.removeprefix("@")
    if is_remote(bare) and masked(bare) != bare:
        raise ConfigError(
            f"{what}: {shown(bare)} is given with a user, password or query, which a ConfigMap would show to everyone: let pods log in by "
            "a service account, or by a netrc file in the secret"
        )
