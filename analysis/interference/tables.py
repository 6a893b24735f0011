"""What is kept of a run's interference, and how it is shown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.charts import Spec, heat_map, side_by_side
from analysis.command import FOLDER
from analysis.interference.metric import Interference
from run.errors import ConfigError

FILE = "interference.json"
Content = dict[str, Any]


def content_of(
    step: int, samples: int, tasks: Sequence[str], found: dict[str, Interference], unreadable: int = 0
) -> Content:
    """found: by name of the weight; unreadable: samples in whose places others came."""
    layers = [
        {
            "name": name,
            "samples_used": samples,
            "ratio_of_means": one.ratio_of_means_IJ.tolist(),
            "low": one.low_IJ.tolist(),
            "high": one.high_IJ.tolist(),
            "mean_of_ratios": one.mean_of_ratios_IJ.tolist(),
            "unstable": one.unstable_I.tolist(),
            "determined": one.determined_I.tolist(),
        }
        for name, one in found.items()
    ]
    return {"step": step, "samples": samples, "unreadable": unreadable, "tasks": list(tasks), "layers": layers}


def by_step(content: Content) -> list[Content]:
    """What was found, and what was found at other checkpoints; each step once."""
    found = {at_step["step"]: at_step for at_step in (content, *content.get("over_training", ()))}
    return [found[step] for step in sorted(found)]


def csv_of(content: Content) -> str:
    """A row for each layer, affected and influencing task."""
    file = io.StringIO()
    figures = ("ratio_of_means", "low", "high", "mean_of_ratios")
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["step", "layer", "affected", "influencing", *figures])
    for at_step in by_step(content):
        for layer in at_step["layers"]:
            for i, affected in enumerate(at_step["tasks"]):
                for j, influencing in enumerate(at_step["tasks"]):
                    rows.writerow(
                        [at_step["step"], layer["name"], affected, influencing, *(layer[f][i][j] for f in figures)]
                    )
    return file.getvalue()


def lines_of(content: Content) -> list[str]:
    """For the console: of each layer what a step on the column's task does to the row's."""
    tasks = content["tasks"]
    width, cell = max(10, *map(len, tasks)), 23
    lines = []
    for layer in content["layers"]:
        lines.append(f"{layer['name']} (step {content['step']:,}; {content['samples']} examples of each task)")
        head = "".join(f"{task[: cell - 2]:>{cell}}" for task in tasks)
        lines.append(f"{'affected':<{width}}{head}   unstable")
        for i, task in enumerate(tasks):
            figures = zip(*(layer[key][i] for key in ("ratio_of_means", "low", "high")), strict=True)
            row = "".join(f"{_cell(*three):>{cell}}" for three in figures)
            note = "" if layer["determined"][i] else "  undetermined: its own steps may not lower its loss"
            lines.append(f"{task:<{width}}{row}{layer['unstable'][i]:11.0%}{note}")
    if content.get("unreadable"):
        lines.append(f"{content['unreadable']} samples could not be read; others came in their places")
    return lines


def chart_of(contents: dict[str, Content]) -> Spec:
    """By name of the run: a map for each layer. Rows of undetermined tasks are empty, as colours would say what nobody knows."""
    charts = []
    for run, content in contents.items():
        nothing = [None] * len(content["tasks"])
        for layer in content["layers"]:
            of_run = f"{run}, {layer['name']}" if len(contents) > 1 else layer["name"]
            if not all(layer["determined"]):
                of_run += " (empty rows: undetermined)"
            values, low, high = (
                [row if known else nothing for row, known in zip(layer[key], layer["determined"], strict=True)]
                for key in ("ratio_of_means", "low", "high")
            )
            charts.append(heat_map(values, content["tasks"], content["tasks"], of_run, low, high, largest=1.0))
    return side_by_side(charts)


def read_kept(folder: Path) -> Content:
    """Raises ConfigError."""
    path = folder / FOLDER / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for look in (csv_of, lines_of):
            look(content)
        return content
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}: run python -m analysis.interference --run {folder} first") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): make it again") from error


def _cell(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None or value != value:
        return "n/a"
    return f"{value:6.3f} [{low:.2f}, {high:.2f}]"
