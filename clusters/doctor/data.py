"""Does the configuration parse, and does every place of its shards answer?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from clusters.doctor.finding import Finding, failed, ok
from data.transport import FetchError, FetchOptions, check_url, expand, is_remote, join, local_path, read_small, shown
from data.transport.fetch import way_of
from run.config import RunConfig, check_layout
from run.config_file import load_config
from run.engine_file import read_engine_file
from run.errors import ConfigError

OPTIONS = FetchOptions(attempts=1, connect_s=5.0, stall_s=5.0)
MAX_LIST_BYTES = 1 << 30


def check_config(path: str, overrides: Sequence[str], world: int) -> tuple[RunConfig | None, list[Finding]]:
    """world: ranks of all machines together; 0 where that is not known."""
    try:
        run = load_config(path, overrides)
        read_engine_file(run)
        if world:
            check_layout(run, world)
    except ConfigError as error:
        return None, [failed("config", str(error), "", "mend the configuration")]
    return run, [ok("config", f"{path}: run {run.name}" + f" on {world} rank(s)" * bool(world))]


def check_task(run: RunConfig, number: int) -> list[Finding]:
    """Of one task: every local shard is there, and every remote place, such as a server or bucket, gives the first bytes of a shard."""
    task = run.data.tasks[number]
    name = f"data {task.name}"
    remedy = "mend the place, the network or the credentials on this machine, or say where the data is: "
    remedy += f"data.tasks.{task.name}.path=PLACE"
    try:
        description = join(task.path, "dataset.json")
        if not read_small(description, MAX_LIST_BYTES, OPTIONS):
            return [failed(name, f"{shown(description)} is empty", "", remedy)]
        shards = list(_listed(task.path, task.split, task.shards, run.data.allow_pipe))
        if not shards:
            return [failed(name, f"no shard {task.split}-*.tar in {shown(task.path)}", "", remedy)]
        missing = [shard for shard in shards if not is_remote(shard) and not os.access(local_path(shard), os.R_OK)]
        if missing:
            said = f"{len(missing)} of {len(shards)} shards cannot be read, as {missing[0]}"
            return [failed(name, said, "", remedy)]
        places = remote_places(shards)
        for shard in places.values():
            _ask(shard)
    except (FetchError, OSError, ValueError) as error:
        return [failed(name, _said(error), "", remedy)]
    return [ok(name, f"{len(shards)} shard(s)" + f"; {len(places)} remote place(s) answer" * bool(places))]


def needs_cache(run: RunConfig) -> bool:
    return any(is_remote(place.removeprefix("@")) for task in run.data.tasks for place in (task.path, *task.shards))


def _listed(path: str, split: str, shards: Sequence[str], allow_pipe: bool) -> Iterator[str]:
    """Where a task's shards are, without a look into them. Raises FetchError, OSError and ValueError."""
    if shards:
        yield from expand(shards, lambda url: read_small(url, MAX_LIST_BYTES, OPTIONS), allow_pipe)
        return
    listed = join(path, f"{split}.shards.json")
    if not is_remote(path) and not os.path.exists(listed):
        yield from map(str, sorted(Path(local_path(path)).glob(f"{split}-*.tar")))
        return
    try:
        rows = json.loads(read_small(listed, MAX_LIST_BYTES, OPTIONS))["shards"]
        names = [str(row["name"]) for row in rows]
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{shown(listed)} is no list of shards: {type(error).__name__}") from error
    yield from (join(path, name) for name in names)


def remote_places(shards: Sequence[str]) -> dict[str, str]:
    """One shard of each server, bucket and command, by the place's name."""
    found: dict[str, str] = {}
    for shard in shards:
        if is_remote(shard):
            parts = urlsplit(shard)
            found.setdefault(f"{parts.scheme}://{parts.netloc}", shard)
    return found


def _ask(shard: str) -> None:
    """Raises FetchError where no byte comes."""
    check_url(shard)
    with way_of(shard)(shard, 0, None, OPTIONS) as reply:
        if not next(reply.chunks, b""):
            raise FetchError(f"{shown(shard)}: nothing comes")


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
