"""The README tells the truth: its commands parse, its files exist."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex

import pytest

import evaluate
import train
from run.config import check_layout
from run.config_file import load_config
from run.engine_file import read_engine_file
from tests.helpers.places import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.yaml"))]


def commands() -> list[str]:
    """Every shell command in code blocks, in inline code, and in the headers of configurations."""
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            line = line.strip().removeprefix("#").strip().split("  #")[0].strip()
            found += [
                part for part in (line, *re.findall(r"`([^`]+)`", line)) if re.match(r"(deepspeed|python|make) ", part)
            ]
    return sorted(set(found))


def test_there_are_commands():
    kinds = {command.split()[0] for command in commands()}
    assert kinds == {"deepspeed", "python", "make"}


@pytest.mark.parametrize("command", commands())
def test_command_can_be_run(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.rstrip("\\").strip(), comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    elif module := [word for before, word in itertools.pairwise(words) if before in ("-m", "--module")]:
        assert importlib.util.find_spec(module[0]), command
    elif "train.py" in words:
        at = words.index("train.py")
        arguments = train.parse_arguments(words[at + 1 :])
        if arguments.config == "...":
            return
        world = int(words[words.index("--num_gpus") + 1]) if "--num_gpus" in words else arguments.world or 1
        run = load_config(arguments.config, arguments.overrides)
        if not arguments.describe:
            check_layout(run, run.micro_batches if "--hostfile" in words else world)
        read_engine_file(run)
    elif "evaluate.py" in words:
        evaluate.parse_arguments(words[words.index("evaluate.py") + 1 :])
    else:
        assert (ROOT / words[1]).is_file(), command


def test_the_tree_exists():
    tree = README.split("## The tree\n```\n")[1].split("```")[0]
    names = [line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")]
    assert len(names) > 12
    for name in names:
        assert (ROOT / name).exists(), name
