"""What is no figure: what was run, evaluations, the ledger of bad data, events, and how runs differ."""

from __future__ import annotations

import collections
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.charts import short
from analysis.markup import Html, command, details, joined, note, table, tag
from analysis.report.reading import RunFiles, flat
from evaluation.intervals import difference
from run.config_file import dump_config, load_config
from run.errors import ConfigError
from run.places import expanded, with_absolute
from run.strict_text import TextError, read_yaml, typed

ROOT = Path(__file__).resolve().parents[2]
"""Presets are looked for here too, as a command may name them from the program's folder."""
OWN = ("name", "runs", "path", "shards", "cache_dir")
"""Options, by their last word, that say where a run and its data lie, and not what it is."""
NOTES = ("note", "save", "best")
"""Kinds of events that are as usual."""
MOST_EVENTS, MOST_FAULTS = 300, 100


def configuration(runs: Sequence[RunFiles]) -> Html:
    """Of one run its options, by group; of several what differs, and then each run's."""
    trees = [flat(run.config) for run in runs]
    parts: list[Any] = []
    if len(runs) > 1:
        differing = [key for key in dict.fromkeys(key for tree in trees for key in tree) if not is_place(key)]
        differing = [key for key in differing if len({tree.get(key) for tree in trees}) > 1]
        rows = [[key, *(tree.get(key, "") for tree in trees)] for key in differing]
        parts.append(table(["option", *(run.name for run in runs)], rows, "Options that differ between the runs"))
    for run, tree in zip(runs, trees, strict=True):
        parts.append(tag("h3", f"Configuration of {run.name}" if len(runs) > 1 else "Configuration"))
        parts.append(_differences_to_preset(run, tree))
        groups: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
        for key, value in tree.items():
            group, _, rest = key.partition(".")
            groups[group if rest else "run"].append((rest or group, value))
        parts += [
            details(f"{group} ({len(rows)} options)", table(["option", "value"], rows, f"Options of {group}"))
            for group, rows in groups.items()
        ]
    return joined(parts)


def _differences_to_preset(run: RunFiles, tree: Mapping[str, str]) -> Html:
    words = str(run.starts[0].details.get("command", "")) if run.starts else ""
    if not words:
        return note(
            "The command that started the run is not known (no start in events.jsonl), so neither is its preset."
        )
    found = preset_of(words)
    if found is None:
        return note(
            "The configuration that the command names is not here, so the run cannot be compared with its preset."
        )
    name, preset = found
    rows = [
        (key, preset.get(key, ""), tree.get(key, ""))
        for key in dict.fromkeys([*preset, *tree])
        if preset.get(key) != tree.get(key) and not is_place(key)
    ]
    return table(["option", name, run.name], rows, f"What differs from {name}")


def preset_of(words: str) -> tuple[str, dict[str, str]] | None:
    """(name, options) of the configuration below the one that a command names (`base`), or of that one where it has none."""
    try:
        parts = shlex.split(words)
    except ValueError:
        return None
    named = [part.partition("=")[2] for part in parts if part.startswith("--config=")]
    named += [after for part, after in itertools.pairwise(parts) if part == "--config"]
    for place in [folder / name for name in named[:1] for folder in (Path(), ROOT)]:
        try:
            path = expanded(place)
            raw = typed(dict, read_yaml(path.read_bytes()))
            base = raw.get("base") if isinstance(raw, dict) else None
            preset = path.parent / base if isinstance(base, str) else path
            config = yaml.safe_load(dump_config(with_absolute(load_config(preset))))
        except (OSError, ValueError, TextError, ConfigError):
            continue
        return preset.name, flat(config)
    return None


def is_place(key: str) -> bool:
    return key.rpartition(".")[2] in OWN


def surroundings(runs: Sequence[RunFiles]) -> Html:
    """Where and how runs were started; those without events say nothing."""
    found = [(run, _started(run)) for run in runs if run.starts]
    silent = [run.name for run in runs if not run.starts]
    parts = []
    if found:
        names = dict.fromkeys(name for _, cells in found for name in cells)
        rows = [[name, *(cells.get(name, "") for _, cells in found)] for name in names]
        parts.append(table(["what", *(run.name for run, _ in found)], rows, "How it was started"))
    if silent:
        words = f"Command, versions, hardware and git state of {', '.join(silent)}: not known, as there is no start in events.jsonl."
        parts.append(note(words))
    return joined(parts)


def _started(run: RunFiles) -> dict[str, Any]:
    """Of the last start."""
    start, git = run.starts[-1], run.starts[-1].details.get("git")
    commit = (
        f"{git.get('commit')}{' with changes' if git.get('changed') else ''}"
        if isinstance(git, dict)
        else "no repository"
    )
    cells: dict[str, Any] = {
        "command": command(str(start.details.get("command", "not known"))),
        "started": run.starts[0].time,
    }
    if len(run.starts) > 1:
        cells["last start"] = start.time
    cells["git"] = commit
    for group in ("ranks", "hardware", "versions"):
        if isinstance(start.details.get(group), dict):
            cells |= {f"{group}: {key}": value for key, value in flat(start.details[group]).items()}
    return cells


def evaluations(run: RunFiles) -> Html:
    if not any(kept.rows for kept in run.evaluations):
        return note(
            f"No evaluation of {run.name} is kept: ", command(f"python evaluate.py --run {run.folder}"), " makes one."
        )
    rows = []
    for kept in run.evaluations:
        for task, row in kept.rows.items():
            low, high = row["interval"]
            value, floor = (row["metrics"][row[key]] for key in ("figure", "floor"))
            count = row["metrics"].get("samples", len(row["evidence"]) if isinstance(row.get("evidence"), list) else "")
            rows.append(
                (
                    task,
                    kept.split,
                    f"{kept.step:,}",
                    row["figure"],
                    _digits(value),
                    f"{_digits(low)} to {_digits(high)}",
                    count,
                    _digits(floor),
                )
            )
    head = ["task", "split", "step", "figure", "value", "95 % interval", "samples", "without learning"]
    return joined([table(head, rows, f"Evaluations of {run.name}", numbers=(2, 4, 5, 6, 7)), *_all_figures(run)])


def _all_figures(run: RunFiles) -> Iterable[Html]:
    for kept in run.evaluations:
        rows = [
            (task, name, _digits(value))
            for task, row in kept.rows.items()
            for name, value in row["metrics"].items()
            if isinstance(value, int | float)
        ]
        title = f"All figures of {run.name}, {kept.split}, step {kept.step:,}"
        yield details(title, table(["task", "figure", "value"], rows, title, numbers=(2,)))


def differences(runs: Sequence[RunFiles]) -> Html:
    """Of all runs but the first to the first: last losses, and evaluations that both have on the same data, with intervals."""
    first, parts = runs[0], []
    keys = [
        key
        for key in first.metrics.columns
        if key.startswith(("loss/", "accuracy/")) or key in ("tokens_per_s", "step_s")
    ]
    rows = []
    for key in keys:
        values = [run.metrics.last(key) for run in runs]
        rows.append([key, *("" if value is None else short(value) for value in values)])
    columns = tuple(range(1, len(runs) + 1))
    parts.append(table(["last value of", *(run.name for run in runs)], rows, "Last values", numbers=columns))
    for run in runs[1:]:
        rows = list(_judged(first, run))
        head = ["task", "split", "figure", first.name, run.name, "difference", "95 % of it"]
        parts.append(table(head, rows, f"Evaluations: {run.name} against {first.name}", numbers=(3, 4, 5, 6)))
    return joined(parts)


def _judged(one: RunFiles, other: RunFiles) -> Iterable[list[Any]]:
    for kept in one.evaluations:
        theirs_by_task = next((found.rows for found in other.evaluations if found.split == kept.split), {})
        for task, mine in kept.rows.items():
            theirs = theirs_by_task.get(task)
            if theirs is None or any(mine.get(key) != theirs.get(key) for key in ("figure", "digest", "options")):
                continue
            pair = [np.asarray(row["evidence"], dtype=np.float64) for row in (mine, theirs)]
            if pair[0].shape != pair[1].shape or pair[0].ndim != 2 or not pair[0].size:
                continue
            value, low, high = difference(pair[0], pair[1], paired=True)
            figures = [_digits(row["metrics"][mine["figure"]]) for row in (mine, theirs)]
            yield [task, kept.split, mine["figure"], *figures, f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}"]


def ledger(run: RunFiles) -> Html:
    if not run.faults:
        return note(f"Nothing of the data of {run.name} was bad.")
    counts = collections.Counter((str(fault.get("task")), str(fault.get("reason"))) for fault in run.faults)
    summary = [(task, reason, f"{count:,}") for (task, reason), count in counts.most_common(MOST_FAULTS)]
    rows = [
        [fault.get(key, "") for key in ("task", "shard", "sample", "offset", "reason")]
        for fault in run.faults[:MOST_FAULTS]
    ]
    rows = [["" if cell is None else cell for cell in row] for row in rows]
    title = f"The first {len(rows)} of {len(run.faults):,} entries" if len(rows) < len(run.faults) else "All entries"
    every = table(["task", "shard", "sample", "offset", "reason"], rows, title, numbers=(2, 3))
    return joined(
        [table(["task", "reason", "number"], summary, f"Bad data of {run.name}", numbers=(2,)), details(title, every)]
    )


def events(run: RunFiles) -> Html:
    found = list(run.events)
    known = {(event.step, event.text) for event in found if event.kind == "alarm"}
    rows = [(event.step, event.kind, event.text, event.time) for event in found]
    rows += [(step, "alarm", text, "") for step, text in run.metrics.alarms if (step, text) not in known]
    rows.sort(key=lambda row: row[0])
    if not rows:
        return note(f"{run.name} has no events (events.jsonl).")
    head = ["step", "kind", "what", "time"]
    told, notes = ([row for row in rows if (row[1] in NOTES) == is_note] for is_note in (False, True))
    parts: list[Any] = []
    if len(told) > MOST_EVENTS:
        parts.append(note(f"Of {len(told):,} events these are the last {MOST_EVENTS}."))
    parts.append(table(head, told[-MOST_EVENTS:], f"Events of {run.name}", numbers=(0,)))
    if notes:
        title = f"Saves, evaluations and other notes of {run.name}: the last {min(len(notes), MOST_EVENTS)} of {len(notes):,}"
        parts.append(details(title, table(head, notes[-MOST_EVENTS:], title, numbers=(0,))))
    return joined(parts)


def _digits(value: Any) -> str:
    if value is None:  # what is not defined, as the CIDEr of one shuffled image
        return "none"
    return (
        f"{value:.4f}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:,.6g}"
        if isinstance(value, int | float)
        else str(value)
    )
