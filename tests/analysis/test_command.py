"""What the commands of analysis/ have in common."""

from __future__ import annotations

import argparse
import contextlib

import pytest

from analysis.command import LISTS, parser_of, run_command
from analysis.experts import main as experts
from analysis.interference.__main__ import main as interference
from analysis.routing_maps.__main__ import main as routing_maps

PLACE = "data.tasks.a.path=P"


@pytest.mark.parametrize("option", LISTS)
def test_places_of_data_behind_a_list_are_overrides(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    seen: list[argparse.Namespace] = []
    parser = parser_of("")
    with contextlib.suppress(argparse.ArgumentError):  # --tasks is there
        parser.add_argument(f"--{option}", nargs="+", default=[])
    words = ["--run", "nowhere", f"--{option}", "a", "b", "a", "runs/x=1", "lr=1", PLACE]
    assert run_command(seen.append, parser, words) == 0
    assert getattr(seen[0], option) == ["a", "b", "runs/x=1", "lr=1"] and seen[0].overrides == [PLACE]


@pytest.mark.parametrize("main", [experts, interference, routing_maps])
def test_all_options_with_lists_are_known(main, capsys):
    """One that LISTS lacks would take overrides."""
    with pytest.raises(SystemExit):
        main(["--help"])
    lists = [
        line.split()[0]
        for line in capsys.readouterr().out.splitlines()
        if line.strip().startswith("--") and "..." in line
    ]
    assert lists and {name.removeprefix("--") for name in lists} <= set(LISTS)
