"""A suite in the loop gives what evaluate.py gives for it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.stream.source import OpenData
from evaluate import main
from evaluation.config import EvaluateConfig
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.changes import told_changes
from run.config import RunConfig
from run.config_file import load_config
from run.data import open_run_data
from run.errors import ConfigError
from run.evaluation.in_loop import evaluation_of
from run.weights.best import Best
from tests.helpers.runs import saved_run, tiny_config


def suite_of(world: Path, folder: Path) -> Path:
    """Other splits, options and sentences than the run's; one of the run's tasks lends two their options."""
    path, shapes = folder / "own.yaml", str(world / "shapes")
    films: dict[str, Any] = {
        "name": "films",
        "path": str(world / "clips"),
        "split": "heldout",
        "options": {"num_frames": 2},
    }
    unseen = {"name": "held out", "path": shapes, "split": "heldout", "templates": "simple"}
    named: list[dict[str, Any]] = [films, unseen, {"name": "seen", "path": shapes, "prepare": "make shapes"}]
    texts = {"name": "texts", "kind": "masked_text", "path": str(world / "sentences"), "split": "heldout"}
    path.write_text(yaml.safe_dump({"tasks": [*({"kind": "classification"} | task for task in named), texts]}))
    return path


def opened(config: Path, words: str) -> tuple[RunConfig, OpenData, Objective]:
    run = load_config(config, [f"evaluate={{every: 1, {words}}}"])
    data = open_run_data(run)
    return run, data, Objective(run.model, data.vocabulary.size, Mesh(), load_kernels("torch"))


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads(path.read_text())["results"]
    return {row["task"]: {key: value for key, value in row.items() if key != "seconds"} for row in rows}


def test_a_suite_in_the_loop_gives_the_figures_of_evaluate(world, tmp_path, capsys):
    config, suite = tiny_config(world, tmp_path), suite_of(world, tmp_path)
    folder = saved_run(config, noise=0.1)
    assert main(["--run", str(folder), "--suite", str(suite), "--limit", "6", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in err.splitlines()[1:]] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    assert "2 of 4: held out, 6 samples at most, simple sentences accuracy 0." in err and out.startswith("task ")
    path = folder / "evaluations" / "own_step_00000003.json"
    alone = rows_of(path)
    path.unlink()
    run, data, objective = opened(config, f"suite: {suite}, limit: 6")
    load_found(folder / "checkpoints", 3, objective)
    evaluation = evaluation_of(run, data, objective, contextlib.nullcontext, Mesh())
    told: list[str] = []
    found = evaluation.found(3, told.append, lambda: None)
    few = ", 6 samples at most"
    assert told[0].startswith("own at step 3: films accuracy 0.") and rows_of(path) == alone
    assert list(alone) == [f"films{few}", f"held out{few}, simple sentences", f"seen{few}", f"texts{few}"]
    assert found.figures["own/seen/accuracy"] == alone[f"seen{few}"]["metrics"]["accuracy"]
    assert {f"own/{name}" for name in evaluation.names} == found.figures.keys() - {"evaluation_s"}


def test_the_best_is_followed_by_names_of_the_suite(world, tmp_path):
    config, suite = tiny_config(world, tmp_path), suite_of(world, tmp_path)
    run, data, objective = opened(config, f"suite: {suite}, keep_best: held out/accuracy, tasks: [held out]")
    names = evaluation_of(run, data, objective, contextlib.nullcontext, Mesh()).names
    best = Best.of(run.evaluate, None, names).after(1, {"own/held out/accuracy": 0.5}, lambda line: None)
    assert best.step == 1 and {name.split("/")[0] for name in names} == {"held out"}
    changes = told_changes(load_config(config, ["evaluate.every=1"]), run, 1)
    assert f"changed: evaluate.suite was '', now '{suite}'" in changes


def test_what_a_suite_lacks_is_told_before_the_first_step(world, tmp_path):
    config, suite = tiny_config(world, tmp_path), suite_of(world, tmp_path)
    suite.write_text(suite.read_text().replace(str(world / "shapes"), "nowhere"))
    run, data, objective = opened(config, f"suite: {suite}, tasks: [seen]")
    said = "seen needs the data set nowhere, which is not there; to make it: make shapes"
    with pytest.raises(ConfigError, match=said):
        evaluation_of(run, data, objective, contextlib.nullcontext, Mesh())
    for options in ({"suite": "small"}, {"suite": "small", "every": 1, "split": "test"}):
        with pytest.raises(ValueError, match="suite='small' is evaluated every"):
            EvaluateConfig(**options)
