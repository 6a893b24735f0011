"""Every row of docs/robustness.md names a test that there is."""

from __future__ import annotations

import re

from tests.helpers.places import ROOT

PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
ROWS = [
    line
    for line in PAGE.split("\n## Faults at random places\n")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| condition")
]


def test_there_are_many_conditions_each_with_its_test():
    assert len(ROWS) >= 100
    for row in ROWS:
        found = re.search(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\) \|$", row)
        assert found, row
        assert f"def {found[1]}(" in (ROOT / found[2]).read_text(encoding="utf-8"), row


def test_no_condition_stands_twice():
    conditions = [row.split(" | ")[0] for row in ROWS]
    assert len(set(conditions)) == len(conditions)
