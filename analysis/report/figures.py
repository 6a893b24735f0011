"""Numbers to figures: what the page draws, and what it says in words. Legend: C columns, R rows, S buckets of steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.charts import Spec, short
from analysis.markup import Html, details, joined, tag
from analysis.report.downsample import downsampled, rounded
from analysis.report.metrics import Column
from analysis.report.reading import RunFiles

MOST_POINTS, MOST_OF_FIGURE = 400, 3000
"""Of a curve, and of all curves of a figure together."""
NAMED = 6
"""A summary names so many curves."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """kind: of specs.KINDS, or `full` for specifications that stand in the content. summary: what is to be seen. content: goes to
    drawing.js as JSON; its `choices` are [{label, options}], with one item of `data` for each of their combinations, the last choice
    running fastest."""

    title: str
    kind: str
    summary: str
    content: dict[str, Any]


class Axes:
    """Lists of steps that curves share, each stored once."""

    def __init__(self) -> None:
        self.lists: list[list[int]] = []
        self._numbers: dict[tuple[int, ...], int] = {}

    def number(self, steps: Sequence[int]) -> int:
        key = tuple(steps)
        if key not in self._numbers:
            self._numbers[key] = len(self.lists)
            self.lists.append(list(steps))
        return self._numbers[key]


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of one run; name: what it shares with the same curve of other runs."""

    name: str
    run: int
    column: Column


def lines(runs: Sequence[RunFiles], columns: Callable[[RunFiles], Mapping[str, Column]]) -> list[Line]:
    """Of all runs, those with a value; names in the order in which they come first."""
    found = [Line(name, i, column) for i, run in enumerate(runs) for name, column in columns(run).items()]
    found = [line for line in found if any(map(math.isfinite, line.column[1]))]
    order = {name: place for place, name in enumerate(dict.fromkeys(line.name for line in found))}
    return sorted(found, key=lambda line: order[line.name])


def keys(run: RunFiles, names: Mapping[str, str]) -> dict[str, Column]:
    """Columns by the names that they are shown with; names: key in the records by name."""
    columns = run.metrics.columns
    return {name: columns[key] for name, key in names.items() if key in columns}


def curves(
    title: str,
    unit: str,
    found: Sequence[Line],
    runs: Sequence[RunFiles],
    axes: Axes,
    log: bool = False,
    pick: bool = False,
) -> Figure | None:
    """log: the axis of values begins logarithmic; pick: one name is shown at a time, however few runs there are. None without lines."""
    if not found:
        return None
    most = max(50, min(MOST_POINTS, MOST_OF_FIGURE // len(found)))
    series = []
    for line in found:
        curve = downsampled(*line.column, most)
        entry = {"name": line.name, "run": line.run, "axis": axes.number(curve.steps), "mean": rounded(curve.means)}
        if not curve.is_whole:
            entry |= {"low": rounded(curve.lows, 3), "high": rounded(curve.highs, 3)}
        series.append(entry)
    content = {"unit": unit, "log": log, "pick": pick, "series": series}
    return Figure(title, "curves", _said(found, runs, unit), content)


def _said(found: Sequence[Line], runs: Sequence[RunFiles], unit: str) -> str:
    parts = []
    for line in found[:NAMED]:
        values = [value for value in line.column[1] if math.isfinite(value)]
        of = f"{line.name} ({runs[line.run].name})" if len(runs) > 1 else line.name
        change = short(values[-1]) if len(values) == 1 else f"{short(values[0])} to {short(values[-1])}"
        parts.append(f"{of} {change}")
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"First to last{f', {unit}' if unit else ''}: {'; '.join(parts)}{more}."


def areas(title: str, unit: str, found: Sequence[Line], runs: Sequence[RunFiles], axes: Axes) -> Figure | None:
    """Parts of a whole. Of each run its own picture, to choose."""
    if not found:
        return None
    data: list[list[dict[str, Any]]] = [[] for _ in runs]
    shares = []
    for line in found:
        curve = downsampled(*line.column, MOST_POINTS // 2)
        data[line.run].append({"name": line.name, "axis": axes.number(curve.steps), "mean": rounded(curve.means)})
    for index, run in enumerate(runs):
        means = {ln.name: float(np.nanmean(np.asarray(ln.column[1]))) for ln in found if ln.run == index}
        whole = sum(means.values()) or 1.0
        biggest = sorted(means.items(), key=lambda item: -item[1])[:NAMED]
        said = ", ".join(f"{name} {value / whole:.0%}" for name, value in biggest)
        shares.append(f"{run.name}: {said}" if len(runs) > 1 else said)
    kept = [index for index in range(len(runs)) if data[index]]
    content = {"unit": unit, "choices": _choices(Run=[runs[i].name for i in kept]), "data": [data[i] for i in kept]}
    return Figure(title, "areas", f"Shares of the whole, on average: {'; '.join(shares[i] for i in kept)}.", content)


def _choices(**choices: Sequence[str]) -> list[dict[str, Any]]:
    """A choice with one option is none."""
    return [{"label": label, "options": list(options)} for label, options in choices.items() if len(options) > 1]


def time_map(
    title: str,
    summary: str,
    steps: Sequence[int],
    end: int,
    values: np.ndarray,
    rows: Sequence[str],
    row_label: str,
    from_zero: bool = True,
    **choices: Sequence[str],
) -> Figure:
    """values [options of the choices ..., R, S]; end: the step at which the last bucket ends."""
    content = {
        "choices": _choices(**choices),
        "rows": list(rows),
        "rowLabel": row_label,
        "steps": [*steps, max(end, steps[-1] + 1)],
        "domain": _domain(values, from_zero),
        "data": [rounded(matrix.reshape(-1).tolist(), 3) for matrix in values.reshape(-1, len(rows), len(steps))],
    }
    return Figure(title, "time_map", summary, content)


def table_map(
    title: str,
    summary: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    from_zero: bool = True,
    **choices: Sequence[str],
) -> Figure:
    """values [options of the choices ..., R, C]; label: what columns are."""
    matrices = values.reshape(-1, len(rows), len(columns))
    content = {
        "choices": _choices(**choices),
        "rows": list(rows),
        "columns": list(columns),
        "label": label,
        "rowLabel": "task",
        "domain": _domain(values, from_zero),
        "data": [rounded(matrix.reshape(-1).tolist(), 3) for matrix in matrices],
    }
    return Figure(title, "table_map", summary, content)


def bars(
    title: str,
    summary: str,
    values: np.ndarray,
    names: Sequence[str],
    columns: Sequence[str],
    label: str,
    is_stacked: bool,
    **choices: Sequence[str],
) -> Figure:
    """values [options of the choices ..., names, C]; is_stacked: shares, which add up to 1."""
    matrices = values.reshape(-1, len(names), len(columns))
    content = {
        "choices": _choices(**choices),
        "names": list(names),
        "columns": list(columns),
        "label": label,
        "stacked": is_stacked,
        "data": [rounded(matrix.reshape(-1).tolist(), 3) for matrix in matrices],
    }
    return Figure(title, "bars", summary, content)


def full(title: str, summary: str, specs: Sequence[Spec], **choices: Sequence[str]) -> Figure:
    """Specifications that bring their data, one for each combination of the choices."""
    return Figure(title, "full", summary, {"choices": _choices(**choices), "data": list(specs)})


def _domain(values: np.ndarray, from_zero: bool) -> list[float]:
    """Values of the lightest and the darkest colour."""
    finite = values[np.isfinite(values)]
    low, high = (0.0 if from_zero else float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return [low, high] if high > low else [low, low + 1]


def figure_markup(figure: Figure, number: int) -> Html:
    """The place of a figure; drawing.js draws into it, and makes the table when it is opened."""
    heading = f"figure-{number}-title"
    summary = joined(["Numbers", tag("span", f" of {figure.title}", class_="unseen")])
    region = tag("div", class_="numbers scroll", tabindex="0", role="group", aria_label=f"Numbers of {figure.title}")
    return tag(
        "figure",
        tag("h3", figure.title, id=heading),
        tag("p", figure.summary, class_="summary"),
        tag("div", class_="controls"),
        tag(
            "div", tag("div", class_="drawing", aria_hidden="true"), class_="plot", role="img", aria_labelledby=heading
        ),
        tag("div", class_="legend", role="group", aria_label=f"Curves of {figure.title}", hidden=True),
        details(summary, region),
        class_="figure",
        data_figure=str(number),
    )
