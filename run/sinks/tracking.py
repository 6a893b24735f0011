"""wandb: one run per run folder, whose steps are the training's, offline unless asked for and possible otherwise.

The environment wins over the configuration (WANDB_MODE, WANDB_DISABLED, WANDB_PROJECT, WANDB_NAME, WANDB_RUN_ID, WANDB_DIR, WANDB_TAGS,
WANDB_RUN_GROUP), as whoever starts a run on a cluster sets it there. Nothing here waits for more than 20 s, or asks a question; what fails
is dropped (run/sinks/guarded.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
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
from run.environment import shown_word
from run.metrics.expert_use import decision_names
from run.metrics.meter import Record
from run.metrics.names import EVALUATION, metric_of
from run.sinks.drawing import finite, heat_map, is_drawn
from run.sinks.guarded import first_line, warn

IDENTITY = "wandb_run.json"
TITLE = 63
"""Characters of an alert's title, which wandb shortens otherwise."""
ANSWER_S, START_S = 6.0, 12.0
"""How long the server may take to answer at all, and then to open the run."""


BINS = 16
"""Of histograms."""


class Wandb:
    """Every number is a chart, every list stands in the history as it is and is drawn now and then, every alarm is an alert."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        with _without_secrets():
            self._run = _start(config, folder)
        self._known: set[str] = set()

    def write(self, record: Record) -> None:
        entries = {key: value for key, value in record.items() if key != "alarms"}
        evaluated = {key: value for key, value in entries.items() if _is_evaluation(key)}
        for key in entries.keys() - self._known:
            # The table of runs: a figure's best is its least or its greatest; lists are too long for it.
            if key in evaluated:
                self._run.define_metric(key, step_metric="step", summary="last,min,max")
            elif isinstance(entries[key], list):
                self._run.define_metric(key, step_metric="step", summary="none")
        self._known |= entries.keys()
        if evaluated:
            entries["evaluation"] = _page(evaluated)
        if is_drawn(record["step"], self._config):
            entries |= self._drawn(record)
        self._run.log(entries, step=record["step"])
        for alarm in record.get("alarms", ()):
            self._run.alert(alarm[:TITLE], f"{alarm} (step {record['step']:,})", level="WARN")

    def close(self) -> None:
        self._run.finish()

    def _drawn(self, record: Record) -> Record:
        import wandb

        drawn: Record = {}
        for key, value in record.items():
            if key == "alarms" or not isinstance(value, list) or not finite(value).size:
                continue
            drawn[f"spread/{key}"] = wandb.Histogram(finite(value).tolist(), num_bins=BINS)
            if isinstance(value[0], list):
                drawn[f"maps/{key}"] = wandb.Image(heat_map(value, decision_names(self._config.model)))
        return drawn


def _is_evaluation(key: str) -> bool:
    found = metric_of(key)
    return found is not None and found[0] is EVALUATION


def _page(figures: Record) -> Any:
    """A table as a page of its own. wandb's tables are artifacts, whose rows lie outside the run folder until they are sent."""
    import wandb

    rows = "".join(f"<tr><td>{html.escape(key)}</td><td>{value:.4g}</td></tr>" for key, value in figures.items())
    return wandb.Html(f"<table><tr><th>figure</th><th>value</th></tr>{rows}</table>")


def wanted_mode(configured: str, environment: Mapping[str, str]) -> str:
    """online, offline or disabled."""
    if environment.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = environment.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline", "run": "online", "": configured}.get(mode, mode)


def _start(config: RunConfig, folder: Path) -> Any:
    """Where it is wanted at all."""
    mode = wanted_mode(config.tracking.wandb, os.environ)
    try:
        (Path(os.environ["HOME"]) / ".cache").mkdir(exist_ok=True)
    except (KeyError, OSError):  # as in a container: its helper would print what it cannot log there
        os.environ["XDG_CACHE_HOME"] = str(folder.resolve() / "wandb" / "cache")
        os.environ.setdefault("WANDB_CONFIG_DIR", str(folder.resolve() / "wandb" / "config"))
    import wandb

    if mode == "online" and (missing := _missing(wandb)):
        warn(f"wandb is offline: {missing}; send it later with `wandb sync {folder}/wandb/offline-run-*`")
        mode = "offline"
    options: dict[str, Any] = {
        "project": None if os.environ.get("WANDB_PROJECT") else config.tracking.project,
        "name": None if os.environ.get("WANDB_NAME") else config.name,
        "dir": None if os.environ.get("WANDB_DIR") else str(folder),
        "id": os.environ.get("WANDB_RUN_ID") or run_id(folder),
        "resume": "allow",
        "tags": None if os.environ.get("WANDB_TAGS") else (config.tracking.tags or None),
        "group": None if os.environ.get("WANDB_RUN_GROUP") else (config.tracking.group or None),
    }
    settings = wandb.Settings(silent=True, console="off", init_timeout=START_S)
    try:
        run = wandb.init(**options, mode=mode, settings=settings)  # type: ignore[arg-type]  # it checks the word itself
    except Exception as error:
        if mode != "online":
            raise
        warn(f"wandb is offline: {first_line(error)}; send it later with `wandb sync {folder}/wandb/offline-run-*`")
        run = wandb.init(**options, mode="offline", settings=settings)
    # Later than its start, as a run that goes on keeps the values of its first start otherwise.
    run.config.update(by_names(dataclasses.asdict(without_credentials(config))), allow_val_change=True)
    run.define_metric("*", step_metric="step")
    run.define_metric("step", hidden=True)  # a chart of itself
    return run


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """wandb keeps the command line, and overrides in it may name URLs with passwords."""
    words = sys.argv
    sys.argv = [shown_word(word) for word in words]
    try:
        yield
    finally:
        sys.argv = words


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
            warn(f"{folder} is a copy: it becomes another run in wandb, {identity}; metrics.jsonl goes on")
    write_atomically(path, json.dumps({"id": identity, "where": here}))
    return identity


def without_credentials(config: RunConfig) -> RunConfig:
    """What may leave the machine: URLs without user, password and query, commands without arguments."""
    tasks = tuple(
        dataclasses.replace(task, path=shown(task.path), shards=tuple(map(shown, task.shards)))
        for task in config.data.tasks
    )
    return dataclasses.replace(config, init=shown(config.init), data=dataclasses.replace(config.data, tasks=tasks))


def by_names(tree: Any) -> Any:
    """Lists of named elements as mappings: wandb filters and groups runs by keys, as `data.tasks.shapes.batch_size`."""
    if isinstance(tree, dict):
        return {key: by_names(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        if tree and all(isinstance(item, dict) and "name" in item for item in tree):
            return {item["name"]: by_names({k: v for k, v in item.items() if k != "name"}) for item in tree}
        return [by_names(item) for item in tree]
    return tree
