"""Commands of the page are as the program takes them."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from clusters.store import add_command
from tests.helpers.places import ROOT

PAGE = (ROOT / "docs" / "stores.md").read_text()
COMMANDS = re.findall(r"^python -m clusters (store .*?)(?: &)?$", PAGE, re.MULTILINE)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_command(made.add_subparsers(required=True))
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command):
    assert callable(parser().parse_args(shlex.split(command)).main)


def test_the_page_has_every_command_and_option(capsys):
    assert {command.split()[1] for command in COMMANDS} == {"upload", "download", "list"}
    with pytest.raises(SystemExit):
        parser().parse_args(["store", "upload", "--help"])
    for option in set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}:
        assert option in PAGE, option
