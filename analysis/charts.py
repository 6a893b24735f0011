"""Pictures of numbers as Vega-Lite specifications, and as files. Nothing is fetched from elsewhere.

A specification is plain JSON: `save` draws it here, and the report page embeds the same one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert

from run.errors import ConfigError

Spec = dict[str, Any]
Grid = Sequence[Sequence[float | None]]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
VERSION = "6.4"
"""Of Vega-Lite, as vl-convert names it."""
FROM_ZERO = ["#f2f6fa", "#a6c8e0", "#3d8bbf", "#0b4a84"]
AROUND_ZERO = ["#8f3f00", "#e08a3c", "#f5f5f2", "#5a9fc9", "#0b4a84"]
"""Light to dark blue; orange for below zero. Both are told apart by people with any kind of colour blindness."""
DARK_CELL = 0.6
"""From this share of the largest value on, a cell is so dark that its number is white."""


def heat_map(
    values: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    low: Grid | None = None,
    high: Grid | None = None,
    largest: float | None = None,
) -> Spec:
    """Values [row][column] as coloured cells with their numbers; low, high: ends of an interval of each, told beside the pointer.

    Values below zero make colours run both ways from zero. largest: values farther from zero share its colour; by default none does.
    What is None or not finite is an empty cell.
    """
    cells = []
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        value = _finite(values[i][j])
        cell: Spec = {"row": row, "column": column, "value": value, "text": "" if value is None else short(value)}
        if low is not None and high is not None:
            ends = _finite(low[i][j]), _finite(high[i][j])
            cell["interval"] = "unknown" if None in ends else " to ".join(short(end) for end in ends if end is not None)
        cells.append(cell)
    finite = [cell["value"] for cell in cells if cell["value"] is not None]
    top = largest or max(map(abs, finite), default=0.0) or 1.0
    both = any(value < 0 for value in finite)
    scale: Spec = {"domain": [-top, top] if both else [0, top], "range": AROUND_ZERO if both else FROM_ZERO}
    scale |= {"interpolate": "rgb", "clamp": True}
    axis: Spec = {"labelLimit": 160, "title": None}
    tooltip: list[Spec] = [
        {"field": "row", "title": "row"},
        {"field": "column", "title": "column"},
        {"field": "text", "title": "value"},
    ]
    if low is not None and high is not None:
        tooltip.append({"field": "interval", "title": "interval"})
    place: Spec = {
        "y": {"field": "row", "type": "nominal", "sort": list(rows), "axis": axis},
        "x": {"field": "column", "type": "nominal", "sort": list(columns), "axis": {**axis, "orient": "top"}},
        "tooltip": tooltip,
    }
    ink = {"condition": {"test": f"abs(datum.value) > {DARK_CELL * top}", "value": "#ffffff"}, "value": "#1a1a1a"}
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": {"step": 56},
        "height": {"step": 34},
        "data": {"name": "cells", "values": cells},
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "#80808040"},
                "encoding": {
                    **place,
                    "color": {"field": "value", "type": "quantitative", "scale": scale, "title": None},
                },
            },
            {"mark": {"type": "text"}, "encoding": {**place, "text": {"field": "text"}, "color": ink}},
        ],
    }


def stacked_shares(
    shares: Grid, names: Sequence[str], columns: Sequence[str], title: str, parts: tuple[str, str]
) -> Spec:
    """A panel per name: of each column a bar of two parts that add up to 1; shares [name][column] are of the first part."""
    rows = [
        {"name": name, "column": column, "part": part, "share": share if first else 1 - share, "order": int(not first)}
        for name, of_one in zip(names, shares, strict=True)
        for column, share in zip(columns, of_one, strict=True)
        for part, first in ((parts[0], True), (parts[1], False))
        if share is not None
    ]
    colour = {"domain": list(parts), "range": [AROUND_ZERO[3], AROUND_ZERO[1]]}
    return {
        "$schema": SCHEMA,
        "title": title,
        "data": {"values": rows},
        "facet": {"field": "name", "type": "nominal", "sort": list(names), "title": None},
        "columns": 4,
        "spec": {
            "width": {"step": 18},
            "height": 110,
            "mark": "bar",
            "encoding": {
                "x": {"field": "column", "type": "nominal", "sort": list(columns), "title": None},
                "y": {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}},
                "color": {"field": "part", "type": "nominal", "scale": colour, "title": None},
                "order": {"field": "order"},
            },
        },
    }


def side_by_side(specs: Sequence[Spec]) -> Spec:
    """Charts in rows, each with its own scales."""
    own = {"color": "independent", "x": "independent", "y": "independent"}
    unnamed = [spec | {"data": {"values": spec["data"]["values"]}} for spec in specs]  # each name may stand once
    return {"$schema": SCHEMA, "columns": 3, "concat": unnamed, "resolve": {"scale": own}}


def save(spec: Spec, path: Path) -> None:
    """As .svg or .png. Raises ConfigError."""
    kind = path.suffix.lower()
    try:
        if kind == ".svg":
            path.write_text(vl_convert.vegalite_to_svg(spec, vl_version=VERSION), encoding="utf-8")
        elif kind == ".png":
            path.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=VERSION, scale=2))
        else:
            raise ConfigError(f"{path}: pictures are written as .svg or .png")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
