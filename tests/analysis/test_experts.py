"""Use of experts over a split: each sample once on any layout, kept and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import experts
from analysis.experts import compared, content_of, measure, pictures_of, read_kept, shares_by_group
from analysis.opened import open_run
from parallel.mesh import destroy_mesh
from run.errors import ConfigError
from tests.helpers.distributed import run_ranks
from tests.helpers.runs import saved_run, tiny_config


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> dict[str, str]:
    """Folders by router."""
    found = {}
    for router in ("attribute", "token"):
        config = tiny_config(world, tmp_path_factory.mktemp(router))
        found[router] = str(saved_run(config, f"model.experts.router={router}", noise=0.3))
    return found


def parsed(run: str, *words: str):
    parser = experts.parser_of("")
    return parser.parse_args(["--run", run, *words])


def found(rank: int, run: str, *words: str) -> dict:
    """What is kept, on this rank's part."""
    opened = open_run(parsed(run, *words), "val")
    content = content_of(opened, "val", measure(opened, 13, 4))
    if words:
        destroy_mesh()
    return content


@pytest.mark.parametrize("router", [pytest.param("attribute", marks=pytest.mark.parity), "token"])
@pytest.mark.parametrize("words", [("--expert", "2"), ("--tensor", "2"), ("--expert", "1")])
def test_two_ranks_count_what_one_does(runs, router, words):
    alone = found(0, runs[router])
    assert sum(map(sum, alone["tasks"]["shapes"]["asked"])) > 0
    for content in run_ranks(2, found, runs[router], *words):
        assert content == alone


def test_the_command_keeps_what_it_found_and_draws_it(runs, capsys):
    for run in runs.values():
        assert experts.main(["--run", run, "--limit", "6", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "0 attention" in output and "image share" in output
    content = read_kept(experts.expanded(runs["token"]))
    assert set(content["tasks"]) == {"shapes", "clips", "sentences", "captions", "retrieval"}
    assert experts.main(["--run", runs["token"], "--limit", "6", "--compare", runs["attribute"]]) == 0
    folder = Path(runs["token"]) / experts.FOLDER
    pictures = sorted(path.name for path in folder.glob("*.svg"))
    assert pictures == [
        "experts_0_attention.svg",
        "experts_0_ffn.svg",
        "experts_image_share.svg",
        "routers.svg",
    ]
    assert "attribute router" in (folder / "routers.svg").read_text()


def test_shares_of_a_group_add_up(runs):
    content = found(0, runs["attribute"])
    rows, values = shares_by_group(content)
    assert "shapes, image" in rows and "clips, video" in rows and "sentences, text" in rows
    assert values.sum(axis=2) == pytest.approx(1, abs=0.01)
    assert len(pictures_of(content)) == 3


def test_what_cannot_be_used_is_said(runs, world, tmp_path, capsys):
    dense = saved_run(tiny_config(world, tmp_path), "model.experts.placement=none")
    for words, said in (
        (["--run", str(dense)], "has no experts"),
        (["--run", runs["token"], "--tasks", "nobody"], "--tasks nobody: the tasks of"),
        (["--run", runs["token"], "--tensor", "2"], "parallel.tensor=2 does not divide"),
    ):
        assert experts.main(words) == 2
        assert said in capsys.readouterr().err
    (dense / experts.FOLDER).rmdir()
    (dense / experts.FOLDER).write_text("in the way")
    assert experts.main(["--run", str(dense)]) == 2
    assert capsys.readouterr().err == f"error: {dense / experts.FOLDER} cannot be written: File exists\n"
    (dense / experts.FOLDER).unlink()
    (dense / experts.FOLDER).mkdir()
    with pytest.raises(ConfigError, match=r"run python -m analysis\.experts"):
        compared([dense])
    (dense / experts.FOLDER / experts.FILE).write_text(json.dumps({"tasks": {"a": 3}, "modalities": []}))
    with pytest.raises(ConfigError, match="is damaged"):
        compared([dense])
