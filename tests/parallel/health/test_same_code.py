"""Machines with different source are found before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parallel.health.same_code import check_same_code, code_digest, different_files, source_digests
from parallel.health.same_inputs import DisagreementError
from tests.helpers.distributed import run_ranks
from tests.helpers.places import ROOT


@pytest.fixture
def tree(tmp_path) -> Path:
    (tmp_path / "run" / "sinks").mkdir(parents=True)
    for name in ("train.py", "run/config.py", "run/sinks/sinks.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def agree(rank: int, trees: list[Path]) -> str:
    from parallel.mesh import create_mesh

    create_mesh()
    try:
        check_same_code(trees[rank])
    except DisagreementError as error:
        return str(error)
    return ""


def test_the_digest_follows_from_what_runs_alone(tree):
    before = code_digest(tree)
    assert sorted(source_digests(tree)) == ["run/config.py", "run/sinks/sinks.py", "train.py"]
    for name in ("README.md", "tests/test_a.py", "runs/x/config.py", "run/__pycache__/config.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("other")
    assert code_digest(tree) == before
    (tree / "run" / "config.py").write_text("other")
    changed = code_digest(tree)
    (tree / "run" / "config.py").rename(tree / "run" / "configs.py")
    assert len({before, changed, code_digest(tree)}) == 3


def test_the_program_itself_is_seen():
    names = source_digests(ROOT)
    assert {"train.py", "run/config.py", "ds_configs/zero1.json", "parallel/health/same_code.py"} <= names.keys()
    assert not any(name.startswith("tests/") for name in names)


def test_files_that_differ_are_named():
    assert different_files([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}]) == ["b", "c"]


def test_without_other_ranks_nothing_is_read():
    check_same_code(Path("/nowhere"))


def test_different_code_is_an_error_on_all_ranks_and_the_same_is_none(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "tree"
    shutil.copytree(tree, other)
    (other / "run" / "config.py").write_text("# newer\n")
    first, second = code_digest(tree), code_digest(other)
    messages = run_ranks(2, agree, [tree, other])
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"machines run different code: {first} on ") and f"; {second} on " in messages[0]
    assert "run/config.py differ: bring all to one state (git pull, rsync)" in messages[0]
    assert run_ranks(2, agree, [tree, tree]) == ["", ""]
