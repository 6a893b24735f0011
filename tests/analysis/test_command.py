"""What the commands of analysis/ have in common."""

from __future__ import annotations

import argparse

from analysis.command import parser_of, run_command


def test_places_of_data_behind_names_of_tasks_are_overrides():
    seen: list[argparse.Namespace] = []
    words = ["--run", "nowhere", "--tasks", "a", "b", "a", "data.tasks.a.path=P"]
    assert run_command(seen.append, parser_of(""), words) == 0
    assert seen[0].tasks == ["a", "b"] and seen[0].overrides == ["data.tasks.a.path=P"]
