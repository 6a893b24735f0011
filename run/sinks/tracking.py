"""wandb: one run per run folder, whose steps are the training's, offline unless asked for and possible otherwise.

The environment wins over the configuration (WANDB_MODE, WANDB_DISABLED, WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID, WANDB_DIR), as
whoever starts a run on a cluster sets it there. Nothing here stops a training, waits for more than 20 s, or asks a question.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.transport import shown
from parallel.checkpoints import write_atomically
from run.config import RunConfig
from run.config_file import dump_config
from run.metrics.meter import Record

IDENTITY = "wandb_run.json"
ANSWER_S, START_S = 6.0, 12.0
"""How long the server may take to answer at all, and then to open the run."""


class Wandb:
    """What it raises becomes one warning, and the end of it (its helper process may have got the signal that asks us to stop)."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._run: Any = None
        with self._guarded():
            self._run = _start(config, folder)

    def write(self, record: Record) -> None:
        flat: Record = {}
        for key, value in record.items():
            flat |= _numbered(key, value)
        with self._guarded():
            if self._run is not None:
                self._run.log(flat, step=record["step"])

    def close(self) -> None:
        with self._guarded():
            if self._run is not None:
                self._run.finish()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            _warn(f"no wandb from here on ({_first_line(error)}); metrics.jsonl has everything")


def wanted_mode(configured: str, environment: Mapping[str, str]) -> str:
    """online, offline or disabled."""
    if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = environment.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline", "run": "online", "": configured}.get(mode, mode)


def _start(config: RunConfig, folder: Path) -> Any:
    mode = wanted_mode(config.tracking.wandb, os.environ)
    if mode == "disabled":
        return None
    try:
        (Path(os.environ["HOME"]) / ".cache").mkdir(exist_ok=True)
    except (KeyError, OSError):  # as in a container: its helper would print what it cannot log there
        os.environ["XDG_CACHE_HOME"] = str(folder.resolve() / "wandb" / "cache")
        os.environ.setdefault("WANDB_CONFIG_DIR", str(folder.resolve() / "wandb" / "config"))
    import wandb

    if mode == "online" and (missing := _missing(wandb)):
        _warn(f"wandb is offline: {missing}; send it later with `wandb sync {folder}/wandb/offline-run-*`")
        mode = "offline"
    options: dict[str, Any] = {
        "project": None if os.environ.get("WANDB_PROJECT") else config.tracking.project,
        "name": None if os.environ.get("WANDB_NAME") else config.name,
        "dir": None if os.environ.get("WANDB_DIR") else str(folder),
        "id": os.environ.get("WANDB_RUN_ID") or run_id(folder),
        "resume": "allow",
        "config": {"yaml": dump_config(without_credentials(config))},
    }
    settings = wandb.Settings(silent=True, console="off", init_timeout=START_S)
    try:
        run = wandb.init(**options, mode=mode, settings=settings)  # type: ignore[arg-type]  # it checks the word itself
    except Exception as error:
        if mode != "online":
            raise
        _warn(f"wandb is offline: {_first_line(error)}; send it later with `wandb sync {folder}/wandb/offline-run-*`")
        run = wandb.init(**options, mode="offline", settings=settings)
    run.define_metric("*", step_metric="step")
    return run


def _missing(wandb: Any) -> str | None:
    """What there is not, of what going online needs."""
    url = wandb.setup(settings=wandb.Settings(silent=True)).settings.base_url
    if not answers(url):
        return f"{shown(url)} does not answer"
    return (
        None if wandb.login(prompt=False, verify=False) else "there is no key; set WANDB_API_KEY or run `wandb login`"
    )


def answers(url: str) -> bool:
    """Does a server say anything there, through proxies where the environment names them? At most ANSWER_S."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_S).close()
            found.append(True)
        except urllib.error.HTTPError:  # says something
            found.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            pass

    # A thread of its own, as looking up a name knows no limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return bool(found)


def run_id(folder: Path) -> str:
    """The same at every start in this folder, also where it was moved to; another one in a copy, whose points would mix with those of
    the original."""
    path = folder / IDENTITY
    here = {"folder": str(folder.resolve()), "inode": folder.stat().st_ino, "host": socket.gethostname()}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        was, identity = known["where"], str(known["id"])
        # Some network file systems give a folder another number at each mount, but not another path.
        same = was["inode"] == here["inode"] or (was["folder"] == here["folder"] and was["host"] == here["host"])
    except (OSError, ValueError, KeyError, TypeError):
        same, known, identity = False, None, ""
    if not same:
        identity = secrets.token_hex(4)
        if known is not None:
            _warn(f"{folder} is a copy: it becomes another run in wandb, {identity}; metrics.jsonl goes on")
    write_atomically(path, json.dumps({"id": identity, "where": here}))
    return identity


def without_credentials(config: RunConfig) -> RunConfig:
    """What may leave the machine: URLs without user, password and query, commands without arguments."""
    tasks = tuple(
        dataclasses.replace(task, path=shown(task.path), shards=tuple(map(shown, task.shards)))
        for task in config.data.tasks
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=tasks))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _numbered(key: str, value: Any) -> Record:
    """Lists as one entry per element: wandb draws numbers alone."""
    if not isinstance(value, list):
        return {key: value}
    flat: Record = {}
    for index, item in enumerate(value):
        flat |= _numbered(f"{key}/{index}", item)
    return flat
