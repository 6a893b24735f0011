"""Interference of a run's tasks: the same on any layout, kept, drawn and compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.command import FOLDER, parser_of
from analysis.interference import __main__ as command
from analysis.interference.gradients import Examples, only_these_learn, spread_layers, weights_of
from analysis.interference.tables import FILE, by_step, chart_of, csv_of, lines_of, read_kept
from analysis.opened import open_run
from data.shards import BadSample, ShardSet
from data.stream.micro_batch import build_micro_batch
from data.stream.schedule import Assignment
from parallel.mesh import destroy_mesh
from run.errors import ConfigError
from tests.helpers.distributed import run_ranks
from tests.helpers.runs import saved_run, tiny_config

LINEARS = ["ffn.down", "attention.qkv"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> dict[str, str]:
    """Folders by router; block 0 has experts and block 1 none."""
    torch.set_num_threads(1)
    found = {}
    for router in ("attribute", "token"):
        config = tiny_config(world, tmp_path_factory.mktemp(router))
        options = ["model.experts.auxiliary.importance=1.0"] if router == "token" else ["model.chunks=2"]
        found[router] = str(saved_run(config, f"model.experts.router={router}", *options, noise=0.1))
    return found


def measured(rank: int, run: str, *words: str) -> dict:
    arguments = parser_of("").parse_args(["--run", run, "--tasks", "shapes", "captions", "retrieval", *words])
    # What a threshold leaves out hangs on the last digit, and a token's choice does so too.
    threshold = 0.5 if "attribute" in run else 0.0
    for name, value in {"samples": 3, "pairs": 3, "seed": 0, "threshold": threshold}.items():
        setattr(arguments, name, value)
    opened = open_run(arguments, without_auxiliary=True)
    weights = weights_of(opened, [0, 1], LINEARS)
    only_these_learn(opened, weights)
    content = command.measured(opened, weights, arguments)
    if words:
        destroy_mesh()
    return content


@pytest.mark.parametrize("router", ["attribute", pytest.param("token", marks=pytest.mark.parity)])
@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (2, ("--expert", "2")),
        (2, ("--tensor", "2")),
        (2, ("--expert", "1")),
        pytest.param(4, ("--tensor", "2", "--expert", "2"), marks=pytest.mark.parity),
        pytest.param(4, ("--expert", "2"), marks=pytest.mark.parity),
    ],
)
def test_ranks_find_what_one_does(runs, router, ranks, words):
    alone = measured(0, runs[router])
    assert [layer["name"] for layer in alone["layers"]] == [
        "layer 0, attention.qkv", "layer 0, ffn.down", "layer 1, attention.qkv", "layer 1, ffn.down",
    ]  # fmt: skip
    for content in run_ranks(ranks, measured, runs[router], *words):
        assert content["tasks"] == alone["tasks"]
        for layer, expected in zip(content["layers"], alone["layers"], strict=True):
            for figure in ("ratio_of_means", "low", "high", "unstable"):
                assert np.allclose(layer[figure], expected[figure], rtol=1e-3, atol=1e-4), (layer["name"], figure)


def test_a_gradient_is_that_of_the_tasks_loss(runs):
    """By differences of the loss, along the gradient of one weight."""
    opened = open_run(parser_of("").parse_args(["--run", runs["token"]]), without_auxiliary=True)
    (weight,) = weights_of(opened, [1], ["ffn.down"])
    with pytest.raises(ConfigError, match=r"--linears ffn: there are ffn\.down, ffn\.up, attention"):
        weights_of(opened, [1], ["ffn"])
    only_these_learn(opened, [weight])
    examples = Examples.of(opened, pairs=3, seed=0)
    step = 0.01
    for task in range(len(opened.sources)):
        (gradient,), faults = examples.gradient([weight], task, 1)
        assert not faults
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.parameter.add_(gradient / gradient.norm(), alpha=sign * step)
            losses.append(loss_of(examples, task))
            with torch.no_grad():
                weight.parameter.add_(gradient / gradient.norm(), alpha=-sign * step)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradient.norm().item(), rel=0.02)


def loss_of(examples: Examples, task: int) -> float:
    start = examples.schedule.batch_sizes[task]
    micro = build_micro_batch(examples.run.sources[task], Assignment(0, 0, task, start), examples.schedule)
    return examples.run.objective(micro.batch).loss.item()


def test_a_sample_that_cannot_be_read_is_told(runs, monkeypatch):
    read = ShardSet.read

    def spoiled(self, shard: int, index: int):
        if self is shapes and (shard, index) == place:
            raise BadSample("spoiled")
        return read(self, shard, index)

    opened = open_run(parser_of("").parse_args(["--run", runs["attribute"]]))
    weights = weights_of(opened, [1], ["ffn.down"])
    only_these_learn(opened, weights)
    examples = Examples.of(opened, pairs=3, seed=0)
    shapes, place = opened.sources[0].shards, opened.sources[0].order.locate(0)
    monkeypatch.setattr(ShardSet, "read", spoiled)
    (gradient,), (fault,) = examples.gradient(weights, 0, 0)
    assert gradient.norm() > 0 and (fault.task, fault.sample, fault.reason) == ("shapes", place[1], "spoiled")
    assert examples.gradient(weights, 0, 1)[1] == ()


def test_layers_are_spread_over_the_depth():
    assert spread_layers(12) == [3, 7, 11] and spread_layers(24) == [7, 15, 23]
    assert spread_layers(1) == [0] and spread_layers(2) == [0, 1]


def test_the_command_keeps_shows_and_compares(runs, capsys):
    words = ["--samples", "4", "--pairs", "2", "--tasks", "shapes", "retrieval", "--layers", "all"]
    for router, more in (("attribute", []), ("token", ["--over", "all", "--compare", runs["attribute"]])):
        assert command.main(["--run", runs[router], *words, *more]) == 0
    output = capsys.readouterr().out
    assert "layer 1, ffn.down (step 3; 4 examples of each task)" in output and "unstable" in output
    folder = Path(runs["token"]) / FOLDER
    content = json.loads((folder / FILE).read_text())
    assert content["samples"] == 4 and [at["step"] for at in content["over_training"]] == [3]
    assert content["over_training"][0]["layers"] == content["layers"]
    for layer in content["layers"]:
        assert np.diag(np.asarray(layer["ratio_of_means"])) == pytest.approx(1)
    rows = (folder / "interference.csv").read_text().splitlines()
    assert rows[0] == "step,layer,affected,influencing,ratio_of_means,low,high,mean_of_ratios"
    assert len(rows) == 1 + 2 * 2 * 2 and rows == csv_of(content).splitlines()
    assert (folder / "interference.png").stat().st_size > 10_000
    assert runs["attribute"].rsplit("/", 1)[-1] in (folder / "interference.svg").read_text()


@pytest.mark.parametrize(("output", "code"), [("printed", 0), ("/dev/full", 2)])
def test_what_is_measured_is_kept_however_it_is_printed(runs, output, code, tmp_path, monkeypatch, capsys):
    kept = Path(runs["attribute"]) / FOLDER / FILE
    kept.unlink(missing_ok=True)
    monkeypatch.setattr(command, "lines_of", lambda content: ["Größe"])
    words = ["--samples", "2", "--pairs", "2", "--tasks", "shapes", "retrieval"]
    with open(tmp_path / output, "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert command.main(["--run", runs["attribute"], *words]) == code
    assert json.loads(kept.read_text())["samples"] == 2
    if code:
        assert "error: standard output cannot be written: No space left" in capsys.readouterr().err
    else:
        assert (tmp_path / output).read_text().startswith("Gr\\xf6\\xdfe\nkept in ")


def test_steps_are_those_of_complete_checkpoints(tmp_path):
    for step in (3, 20, 7):
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    for step in (3, 20):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "manifest.json").touch()
    run = SimpleNamespace(folder=tmp_path)
    assert command.steps_of(run, ["all"]) == [3, 20] and command.steps_of(run, ["20"]) == [20]
    with pytest.raises(ConfigError, match=r"--over 7: .* has checkpoints of the steps 3, 20 "):
        command.steps_of(run, ["7"])


def test_steps_are_told_in_their_order_and_once():
    found = {step: {"step": step, "samples": 2, "tasks": [], "layers": []} for step in (1, 2, 3)}
    assert by_step(found[2] | {"over_training": [found[3], found[1], found[2]]}) == list(found.values())


def test_what_is_not_told_from_zero_has_no_colour():
    layer = {key: [[1.0, 0.5], [30.0, 1.0]] for key in ("ratio_of_means", "low", "high")}
    content = {"tasks": ["a", "b"], "layers": [layer | {"name": "x", "determined": [True, False]}]}
    (chart,) = chart_of({"run": content})["concat"]
    assert [cell["value"] for cell in chart["data"]["values"]] == [1.0, 0.5, None, None]
    assert chart["title"] == "x (empty rows: undetermined)"


@pytest.mark.parametrize(
    "content", ["[", "[]", "{}", '{"step": 1, "samples": 2, "tasks": ["a"], "layers": [{"name": "x"}]}']
)
def test_a_damaged_file_is_no_table(content, tmp_path):
    (tmp_path / FOLDER).mkdir(exist_ok=True)
    (tmp_path / FOLDER / FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"interference\.json is damaged .*: make it again"):
        read_kept(tmp_path)


def test_a_ratio_that_is_none_is_shown_as_such():
    layer = {key: [[None]] for key in ("ratio_of_means", "low", "high")} | {
        "name": "x",
        "unstable": [1.0],
        "determined": [False],
    }
    line = lines_of({"step": 0, "samples": 2, "tasks": ["a"], "layers": [layer]})[-1]
    assert "n/a" in line and "undetermined" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "shapes"], "interference is between tasks, and shapes is one"),
        (["--layers", "7"], "--layers 7: "),
        (["--layers", "x"], "--layers x: numbers from 0, or all"),
        (["--over", "77"], "has checkpoints of the steps 3"),
        (["--compare", "nowhere"], "there is no nowhere/analysis/interference.json"),
        (["--pairs", "999"], "too few samples"),
    ],
)
def test_what_cannot_be_is_said(runs, words, said, capsys):
    assert command.main(["--run", runs["attribute"], *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--samples", "--pairs"])
def test_one_example_has_no_spread_and_one_pair_no_loss(capsys, word):
    with pytest.raises(SystemExit) as caught:
        command.main(["--run", "r", word, "1"])
    assert caught.value.code == 2 and f"argument {word}: invalid at_least_two value: '1'" in capsys.readouterr().err
