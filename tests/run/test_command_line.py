"""Options of the command lines of the whole repository."""

from __future__ import annotations

import argparse
import ast
import subprocess

import pytest

from run.command_line import Several
from tests.helpers.places import ROOT


def test_list_options_given_again_add_to_what_was_given():
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    seen = 0
    for name in files.split():
        if name.startswith("tests/"):
            continue
        for call in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument" and call.args):
                continue
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if said.get("nargs") not in ("'+'", "'*'") or not ast.unparse(call.args[0]).startswith("'--"):
                continue
            seen += 1
            # The standard library's action adds to a default, too.
            wanted = "'extend'" if said.get("default", "[]") == "[]" else "Several"
            assert said.get("action") == wanted, f"{name}:{call.lineno}: {ast.unparse(call.args[0])}"
    if not seen:
        pytest.skip("no checkout of git")


def test_several_adds_to_what_was_given_and_not_to_the_default():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", action=Several, default=[1, 2])
    assert parser.parse_args([]).ranks == [1, 2]
    assert parser.parse_args(["--ranks", "4"]).ranks == [4]
    assert parser.parse_args(["--ranks", "4", "8", "--ranks", "1"]).ranks == [4, 8, 1]
    assert parser.get_default("ranks") == [1, 2]
