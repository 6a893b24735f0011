"""The board as Grafana imports it: python -m clusters.dashboards.board > clusters/dashboards/grafana.json"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from clusters.dashboards.panels import NAMES, ROWS, Panel

SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHTS = 24, {"stat": 4, "timeseries": 8}
Node = dict[str, Any]


def board() -> Node:
    running = NAMES["running"]
    return {
        "uid": "sparse-generalists",
        "title": "sparse-generalists: training",
        "description": "Runs that write tracking.prometheus. Scrape node exporter with honor_labels: true.",
        "tags": ["training", "mixture of experts"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "timezone": "browser",
        "time": {"from": "now-24h", "to": "now"},
        "timepicker": {},
        "templating": {
            "list": [
                {"type": "datasource", "name": "source", "label": "Data source", "query": "prometheus", "current": {}},
                _variable("job", "Project", f"label_values({running}, job)"),
                _variable("run", "Run", f'label_values({running}{{job=~"$job"}}, run)'),
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": list(_placed()),
    }


def _variable(name: str, label: str, query: str) -> Node:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {},
    }


def _placed() -> Iterator[Node]:
    """Panels beside one another until a line is full; their numbers count up."""
    number, top = 0, 0
    for row in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
            "panels": [],
        }
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            number += 1
            height = max(height, HEIGHTS[panel.kind])
            place = {"x": left, "y": top, "w": panel.width, "h": HEIGHTS[panel.kind]}
            yield _drawn(panel) | {"id": number, "gridPos": place}
            left += panel.width
        top += height


def _drawn(panel: Panel) -> Node:
    is_stat = panel.kind == "stat"
    defaults: Node = {"unit": panel.unit}
    if panel.at_most is not None:
        defaults["max"] = panel.at_most
    if not is_stat:
        custom: Node = {"drawStyle": "line", "lineWidth": 1, "showPoints": "auto", "spanNulls": False}
        if panel.stacked:
            custom |= {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}}
        defaults["custom"] = custom
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _STAT if is_stat else _CURVES,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": is_stat,
                "range": not is_stat,
            }
            for index, (expression, legend) in enumerate(panel.curves.items())
        ],
    }


_STAT = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "graphMode": "none",
    "colorMode": "value",
    "textMode": "auto",
}
_CURVES = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def text() -> str:
    return json.dumps(board(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
