"""The template can be put together without a server, and shows figures that runs have."""

from __future__ import annotations

import re
import warnings

import pytest

from clusters.dashboards.wandb_report import IMAGES, SECTIONS, STEP, main, report
from run.metrics.names import METRICS, metric_of

with warnings.catch_warnings(action="ignore"):  # it uses pydantic as version 1 was
    import wandb_workspaces.reports.v2 as wr

KEYS = [metric.key.replace("SPLIT", "val").lower() for metric in METRICS]
LISTS = [metric.key for metric in METRICS if len(metric.axes) == 2]
CURVES = [curve for curves in SECTIONS.values() for curve in curves]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.title)
def test_a_curve_is_of_figures_that_there_are(curve):
    assert bool(curve.keys) != bool(curve.pattern)
    for key in curve.keys:
        assert key in KEYS and metric_of(key) is not None
    if curve.pattern:
        assert any(re.search(curve.pattern, key) for key in KEYS), curve.pattern


def test_the_report_has_all_of_them():
    made = report("team", "lab")
    grids = [block for block in made.blocks if isinstance(block, wr.PanelGrid)]
    plots = [panel for grid in grids for panel in grid.panels if isinstance(panel, wr.LinePlot)]
    assert [plot.title for plot in plots] == [curve.title for curve in CURVES]
    assert all(plot.x == STEP for plot in plots) and STEP in KEYS
    assert [plot.metric_regex for plot in plots if plot.metric_regex] == [c.pattern for c in CURVES if c.pattern]
    assert all((grid.runsets[0].entity, grid.runsets[0].project) == ("team", "lab") for grid in grids)
    assert all(image.removeprefix("maps/") in LISTS for image in IMAGES)
    for grid in grids:
        cells = [
            (p.layout.x + x, p.layout.y + y) for p in grid.panels for x in range(p.layout.w) for y in range(p.layout.h)
        ]
        assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


def test_the_command(monkeypatch, capsys):
    assert main(["--show"]) == 0
    assert "  Loss by task: ^loss/.*" in capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit, match="2"):
        main([])
    monkeypatch.setattr("wandb_workspaces.reports.v2.Report.save", _refuse)
    assert main(["--entity", "team"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: the report was not saved: not logged in to W&B"


def _refuse(self, draft: bool) -> None:
    raise ValueError("not logged in\nto W&B")
