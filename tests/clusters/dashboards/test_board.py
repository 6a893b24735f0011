"""The board asks for what the sink writes, and Grafana's own model takes it whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from clusters.dashboards.board import board, text
from clusters.dashboards.panels import NAMES, chosen
from run.metrics.names import METRICS
from tests.clusters.dashboards.made import labels_left, parsed, selectors, written
from tests.helpers.places import ROOT
from tests.run.sinks.made import loaded

FILE = ROOT / "clusters" / "dashboards" / "grafana.json"
BOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def known(world, tmp_path_factory) -> dict[str, set[str]]:
    from tests.helpers.runs import tiny_config

    folder = tmp_path_factory.mktemp("sink")
    return written(loaded(tiny_config(world, folder), f"tracking.prometheus={folder}/run.prom"))


def test_the_file_is_what_its_program_prints():
    assert FILE.read_text() == text(), "run python -m clusters.dashboards.board > clusters/dashboards/grafana.json"


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_panel_asks_for_what_the_sink_writes(title, target, known):
    expression = parsed(target["expr"])
    asked = list(selectors(expression))
    assert asked
    for name, labels in asked:
        assert name in known, name
        assert {"job", "run"} <= labels <= known[name]
    named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert "run" in named and named <= labels_left(expression, known)


def test_every_figure_is_on_the_board(known):
    asked = {name for _, target in TARGETS for name, _ in selectors(parsed(target["expr"]))}
    assert asked == set(known) and len(asked) == len(NAMES) == len(METRICS) + 3


def test_a_name_that_does_not_exist_is_no_panel():
    assert chosen('@loss_nats{task="a"}') == 'sparse_generalists_loss_nats{job=~"$job", run=~"$run", task="a"}'
    with pytest.raises(KeyError):
        chosen("@loss_bits")


def lost(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """What is not in the copy, or another there."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{place}/{key}"
            else:
                yield from lost(value, theirs[key], f"{place}/{key}")
    elif isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            yield place
        else:
            for index, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
                yield from lost(mine, its, f"{place}/{index}")
    elif ours != theirs:
        yield place


def through_grafana(node: dict[str, Any]) -> dict[str, Any]:
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(node)))


def test_grafana_understands_every_key():
    """Its model drops what it does not know: a misspelt key is lost on the way."""
    assert list(lost(BOARD, through_grafana(BOARD))) == []
    wrong = board()
    wrong["panels"][1]["gridPosition"] = wrong["panels"][1].pop("gridPos")
    wrong["panels"][2]["targets"][0]["legend"] = "x"
    assert list(lost(wrong, through_grafana(wrong))) == ["/panels/1/gridPosition", "/panels/2/targets/0/legend"]


def test_panels_lie_beside_one_another():
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"]) > 30
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and all(0 <= x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    variables = [variable["name"] for variable in BOARD["templating"]["list"]]
    assert variables == ["source", "job", "run"]
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text()))
    assert used == {*variables, "__rate_interval"}
