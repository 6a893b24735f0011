"""How each kind of figure is drawn, in Vega-Lite. drawing.js adds data, domains and colours of the reader's theme.

A figure has the width of its column. Names of fields and data are ours, so that no text of a run becomes part of an expression.
"""

from __future__ import annotations

from analysis.charts import SCHEMA, Spec

HEIGHT = 230
STEPS = {"title": "step", "format": ",d", "tickCount": 6, "labelOverlap": True}
SHARED = {
    "$schema": SCHEMA,
    "width": "container",
    "height": HEIGHT,
    "autosize": {"type": "fit-x", "contains": "padding"},
}


def curves() -> Spec:
    """Means as lines, what lies between the extremes of a bucket as a band, events as upright lines. Data: band, raw, line, marks."""
    x = {
        "field": "step",
        "type": "quantitative",
        "axis": STEPS,
        "scale": {"domainMin": {"expr": "first"}, "domainMax": {"expr": "last"}, "nice": False, "zero": False},
    }
    y = {"field": "value", "type": "quantitative", "title": None, "axis": {"tickCount": 6}}
    color = {"field": "name", "type": "nominal", "legend": None}
    dash = {"strokeDash": {"field": "name", "type": "nominal", "legend": None}}
    line = {"type": "line", "clip": True, "strokeJoin": "round"}
    return {
        **SHARED,
        "params": [{"name": "first", "value": 0}, {"name": "last", "value": 1}],
        "encoding": {"x": x},
        "layer": [
            {
                "data": {"name": "band"},
                "mark": {"type": "area", "clip": True, "opacity": 0.16},
                "encoding": {"y": y, "y2": {"field": "high"}, "color": color},
            },
            {
                "data": {"name": "raw"},
                "mark": {**line, "strokeWidth": 1, "opacity": 0.3},
                "encoding": {"y": y, "color": color},
            },
            {
                "data": {"name": "line"},
                "mark": {**line, "strokeWidth": 1.8},
                "encoding": {"y": y, "color": color, **dash},
            },
            {"data": {"name": "marks"}, "mark": {"type": "rule", "clip": True, "strokeDash": [3, 3]}},
        ],
    }


def areas() -> Spec:
    """Parts of a whole over steps, one on top of the other. Data: line."""
    x = {"field": "step", "type": "quantitative", "axis": STEPS, "scale": {"nice": False, "zero": False}}
    y = {"field": "value", "type": "quantitative", "stack": "zero", "title": None}
    return {
        **SHARED,
        "data": {"name": "line"},
        "mark": {"type": "area", "line": False},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "name", "type": "nominal", "legend": None},
            "order": {"field": "place", "type": "quantitative"},
            "tooltip": [
                {"field": "name", "title": "part"},
                {"field": "step", "format": ",d"},
                {"field": "value", "format": ".4~g"},
            ],
        },
    }


def time_map() -> Spec:
    """Rows over steps, values as colours. Data: cells, with the first step of each (step) and of the next (end)."""
    x = {"field": "step", "type": "quantitative", "axis": STEPS, "scale": {"nice": False, "zero": False, "round": True}}
    y = {
        "field": "row",
        "type": "ordinal",
        "sort": None,
        "title": None,
        "axis": {"labelOverlap": True, "labelLimit": 120},
    }
    return {
        **SHARED,
        "data": {"name": "cells"},
        "mark": {"type": "rect"},
        "encoding": {"x": x, "x2": {"field": "end"}, "y": y, "color": _heat(), "tooltip": _tips("step", ",d")},
    }


def table_map() -> Spec:
    """Rows by columns, values as colours. Data: cells."""
    axis = {"labelOverlap": True, "labelSeparation": 5, "labelLimit": 120, "labelAngle": 0}
    return {
        **SHARED,
        "data": {"name": "cells"},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "column", "type": "ordinal", "sort": None, "axis": axis, "scale": {"round": True}},
            "y": {"field": "row", "type": "ordinal", "sort": None, "title": None, "axis": axis},
            "color": _heat(),
            "tooltip": _tips("column", ""),
        },
    }


def bars() -> Spec:
    """Parts of each category, one on top of the other or side by side (drawing.js decides). Data: line."""
    return {
        **SHARED,
        "data": {"name": "line"},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {
                "field": "column",
                "type": "ordinal",
                "sort": None,
                "axis": {"labelAngle": 0, "labelOverlap": True, "labelSeparation": 5},
            },
            "y": {"field": "value", "type": "quantitative", "title": None},
            "color": {"field": "name", "type": "nominal", "legend": None},
            "order": {"field": "place", "type": "quantitative"},
            "tooltip": [
                {"field": "column", "title": "of"},
                {"field": "name", "title": "part"},
                {"field": "value", "format": ".4~g"},
            ],
        },
    }


KINDS = {"curves": curves, "areas": areas, "time_map": time_map, "table_map": table_map, "bars": bars}


def _heat() -> Spec:
    legend = {"title": None, "orient": "top", "gradientLength": 160, "gradientThickness": 8, "format": ".3~g"}
    return {"field": "value", "type": "quantitative", "legend": legend}


def _tips(place: str, style: str) -> list[Spec]:
    second = {"field": place, "title": place} | ({"format": style} if style else {})
    return [{"field": "row", "title": "row"}, second, {"field": "value", "title": "value", "format": ".4~g"}]
