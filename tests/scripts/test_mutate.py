"""Mutants are small, each another one, and always valid programs."""

from __future__ import annotations

import ast
import sys

import pytest

from scripts.mutate import TESTS, main, mirrors_of, mutants_of
from tests.helpers.places import ROOT

SOURCE = """
def f(x: int = 3) -> bool:
    if x < 2 and not x:
        print("text")
        return -x + 1
    return f"{x + 1}"
"""


def test_one_mutant_for_each_place_where_a_mistake_can_be_made(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    monkeypatch.setattr("scripts.mutate.ROOT", tmp_path)
    found = {(mutant.line, mutant.what): mutant.source for mutant in mutants_of(path)}
    assert sorted(found) == [
        (2, "3 -> 4"), (3, "2 -> 3"), (3, "And -> Or"), (3, "Lt -> LtE"), (3, "condition turned round"), (3, "without not"),
        (4, "call left out"), (5, "1 -> 2"), (5, "Add -> Sub"), (5, "returns None"), (5, "without minus"), (6, "returns None"),
    ]  # fmt: skip
    assert len(set(found.values())) == len(found)
    assert "x <= 2 and (not x)" in found[3, "Lt -> LtE"] and "return None" in found[5, "returns None"]
    for source in found.values():
        ast.parse(source)
        assert source != ast.unparse(ast.parse(SOURCE))


def test_modules_and_tests_of_the_table_exist():
    for place, tests in TESTS.items():
        assert all((ROOT / name).exists() for name in (place, *tests))


def test_files_without_tests_in_the_table_are_refused(monkeypatch, capsys):
    assert mirrors_of(ROOT / "run" / "config.py") == TESTS["run"] and mirrors_of(ROOT / "runs.py") == ()
    monkeypatch.setattr(sys, "argv", ["mutate.py", "parallel/mesh.py", "--sample", "1"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and "parallel/mesh.py: no tests mirror it; TESTS has run, " in capsys.readouterr().err
