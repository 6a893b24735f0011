"""The files of a run folder, as plain data. What is not there is empty; what is damaged is told in `notes` and left out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.command import FOLDER
from analysis.report.metrics import Metrics, Use, is_count, json_lines, read_metrics, read_use, use_of
from data.shards import DatasetError
from data.transport import shown
from evaluation.kept import FOLDER as EVALUATIONS
from evaluation.kept import Kept
from run.config import RunConfig
from run.config_file import CONFIG, load_config
from run.errors import ConfigError
from run.folder import is_run
from run.metrics.expert_use import decision_names
from run.strict_text import TextError, read_yaml, typed

MAX_JSON = 64 << 20
MAX_FAULTS = 100_000
ENDS = ("end", "stop", "diverged")
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Event:
    """details: of a start or resume: command, git, versions, hardware, ranks."""

    step: int
    kind: str
    text: str
    time: str
    details: Tree


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """config: nested options by name; decisions: what routers decide, by name; evaluations: the newest of each split; faults: entries of
    the ledgers; pictures: of routing maps, in `maps`."""

    folder: Path
    name: str
    config: Tree
    decisions: tuple[str, ...]
    metrics: Metrics
    events: tuple[Event, ...]
    faults: tuple[Tree, ...]
    evaluations: tuple[Kept, ...]
    use: Use | None
    experts: Use | None
    memory: Tree
    interference: Tree
    samples: Tree
    pictures: tuple[Tree, ...]
    notes: tuple[str, ...]

    @property
    def maps(self) -> Path:
        return self.folder / FOLDER / "routing_maps"

    @property
    def is_sparse(self) -> bool:
        return "expert_load" in self.metrics.over_time or self.use is not None or self.experts is not None

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and self.events[-1].kind in ENDS

    @property
    def starts(self) -> list[Event]:
        return [event for event in self.events if event.kind in ("start", "resume")]


def check_run(folder: Path) -> None:
    """Raises ConfigError if the folder holds no run."""
    if not is_run(folder):
        raise ConfigError(f"{folder} is not the folder of a run: it has no {CONFIG}")


def read_files(folder: Path) -> RunFiles:
    """Raises ConfigError if the folder holds no run."""
    check_run(folder)
    notes: list[str] = []
    try:
        config = typed(RunConfig, read_yaml((folder / CONFIG).read_bytes()))
    except (OSError, TextError) as error:
        raise ConfigError(f"{folder / CONFIG}: {getattr(error, 'strerror', None) or error}") from error
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics.damaged:
        notes.append(f"metrics.jsonl: {metrics.damaged:,} lines that are no records were left out")
    use = read_use(folder / "expert_use.jsonl")
    if use is None and (folder / "expert_use.jsonl").is_file():
        notes.append("expert_use.jsonl has no record that can be read")
    analysis = folder / FOLDER
    experts_tree = _tree(analysis / "experts.json", notes)
    about = f"split {experts_tree.get('split')}, checkpoint of step {experts_tree.get('step')}"
    experts = use_of(experts_tree, about[:200])
    if experts_tree and experts is None:
        notes.append("analysis/experts.json is not what `python -m analysis.experts` writes")
    index = _tree(analysis / "routing_maps" / "index.json", notes)
    return RunFiles(
        folder=folder,
        name=folder.resolve().name,
        config=config if isinstance(config, dict) else {},
        decisions=_decisions(folder),
        metrics=metrics,
        events=_events(folder, notes),
        faults=_faults(folder, notes),
        evaluations=_evaluations(folder / EVALUATIONS, notes),
        use=use,
        experts=experts,
        memory=_tree(folder / "memory.json", notes),
        interference=_tree(analysis / "interference.json", notes),
        samples=_tree(analysis / "samples.json", notes),
        pictures=tuple(picture for picture in list_of(index, "pictures") if isinstance(picture, dict)),
        notes=tuple(notes),
    )


def list_of(tree: Mapping[str, Any], key: str) -> list[Any]:
    """The list at a key of a file that may hold anything."""
    found = tree.get(key)
    return found if isinstance(found, list) else []


def flat(tree: Any, name: str = "") -> dict[str, str]:
    """Options by their dotted names, as texts without credentials; elements of lists by their names, where they have one."""
    if isinstance(tree, dict) and tree:
        return {
            k: v for key, value in tree.items() for k, v in flat(value, f"{name}.{key}" if name else str(key)).items()
        }
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        numbered = {str(item.get("name", place)): item for place, item in enumerate(tree)}
        return {
            k: v
            for key, item in numbered.items()
            for k, v in flat({key: value for key, value in item.items() if key != "name"}, f"{name}.{key}").items()
        }
    return {name: _text(tree)}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict) and not value:
        return "none"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return shown(str(value)) if value != "" else "(empty)"


def _decisions(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(decision_names(load_config(folder / CONFIG, is_resolved=True).model))
    except ConfigError:  # of another version of this program; the rest can be shown
        return ()


def _tree(path: Path, notes: list[str]) -> Tree:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON:
            raise TextError(f"larger than {MAX_JSON:,} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, TextError, ValueError, RecursionError) as error:
        notes.append(f"{path.name}: {getattr(error, 'strerror', None) or error}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name}: no JSON object")
        return {}
    return content


def _events(folder: Path, notes: list[str]) -> tuple[Event, ...]:
    events, damaged = [], 0
    for line in json_lines(folder / "events.jsonl"):
        if line is None or not is_count(line.get("step")) or not isinstance(line.get("kind"), str):
            damaged += 1
            continue
        details: Tree = {key: line[key] for key in ("command", "git", "versions", "hardware", "ranks") if key in line}
        events.append(Event(line["step"], line["kind"], str(line.get("text", "")), str(line.get("time", "")), details))
    if damaged:
        notes.append(f"events.jsonl: {damaged:,} lines that are no events were left out")
    return tuple(events)


def _faults(folder: Path, notes: list[str]) -> tuple[Tree, ...]:
    faults: list[Tree] = []
    for path in sorted(folder.glob("ledger_rank_*.jsonl")):
        for fault in json_lines(path):
            if len(faults) == MAX_FAULTS:
                notes.append(f"of the ledgers only the first {MAX_FAULTS:,} entries were read")
                return tuple(faults)
            if fault is not None:
                faults.append(fault)
    return tuple(faults)


def _evaluations(folder: Path, notes: list[str]) -> tuple[Kept, ...]:
    newest: dict[str, tuple[int, Path]] = {}
    for path in folder.glob("*_step_*.json") if folder.is_dir() else ():
        match = re.fullmatch(r"(.+)_step_(\d{1,15})\.json", path.name)
        if match and (match[1] not in newest or newest[match[1]][0] < int(match[2])):
            newest[match[1]] = int(match[2]), path
    found = []
    for split in sorted(newest):
        try:
            kept = Kept.read(newest[split][1], split)
        except DatasetError as error:
            notes.append(str(error))
            continue
        sound = {str(task): row for task, row in kept.rows.items() if is_sound(row)}
        if len(sound) < len(kept.rows):
            notes.append(f"{newest[split][1].name}: {len(kept.rows) - len(sound)} rows are damaged and were left out")
        found.append(dataclasses.replace(kept, split=split, rows=sound))
    return tuple(found)


def is_sound(row: Any) -> bool:
    """Whether a kept row has what the table shows."""
    try:
        ends = [float(end) for end in row["interval"]]
        figure, floor = (row["metrics"][row[key]] for key in ("figure", "floor"))
        return len(ends) == 2 and isinstance(figure, int | float) and isinstance(floor, int | float | None)
    except (KeyError, TypeError, ValueError):
        return False
