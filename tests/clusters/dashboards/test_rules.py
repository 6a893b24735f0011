"""The alerts ask for what the sink writes, and mean what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import promql_parser as promql
import pytest
import yaml

from tests.clusters.dashboards.made import ADDED, labels_left, parsed, parts, selectors, written
from tests.helpers.places import ROOT
from tests.helpers.runs import tiny_config
from tests.run.sinks.made import loaded

FILE = ROOT / "clusters" / "dashboards" / "rules.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
MEANING = Path(__file__).with_name("rules_test.yaml")


@pytest.fixture(scope="module")
def known(world, tmp_path_factory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("sink")
    names = written(loaded(tiny_config(world, folder), f"tracking.prometheus={folder}/run.prom"))
    return names | {name: labels_left(parsed(expression), names) for name, expression in RECORDED.items()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_the_sink_writes(rule, known):
    expression = parsed(rule["expr"])
    asked = list(selectors(expression))
    assert asked
    for name, labels in asked:
        assert name in known and labels <= known[name] | ADDED, name
    everywhere = set.intersection(*(known[name] | ADDED for name, _ in asked))
    for part in parts(expression):
        if isinstance(part, promql.BinaryExpr) and part.modifier and part.modifier.matching:
            assert set(part.modifier.matching.labels) <= everywhere
        if isinstance(part, promql.AggregateExpr):
            assert part.modifier and set(part.modifier.labels) <= labels_left(part.expr, known)
    if "alert" in rule:
        summary = rule["annotations"]["summary"]
        named = set(re.findall(r"\$labels\.(\w+)", summary))
        assert "run" in named and named <= labels_left(expression, known)


def test_alerts_have_a_severity_a_test_and_a_remedy():
    tested = {
        case["alertname"] for test in yaml.safe_load(MEANING.read_text())["tests"] for case in test["alert_rule_test"]
    }
    page = (ROOT / "docs" / "dashboards.md").read_text()
    assert tested == ALERTS.keys()
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert f"| `{name}` |" in page, f"{name} is not in docs/dashboards.md"


@pytest.mark.slow
def test_alerts_mean_what_they_say(tmp_path):
    """promtool runs the rules over series of hours."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    for path in (FILE, MEANING):
        shutil.copy(path, tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [promtool, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )

    checked = run("check", "rules", FILE.name)
    assert checked.returncode == 0 and f"{len(RULES)} rules found" in checked.stdout, checked.stdout + checked.stderr
    tested = run("test", "rules", MEANING.name)
    assert tested.returncode == 0 and "SUCCESS" in tested.stdout + tested.stderr, tested.stdout + tested.stderr
