"""Checkpoints of earlier versions. `of_before` is a run of commit 0eecf1b: two steps on the world of tests/conftest.py, width 8."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation import EVALUATORS, Evaluation
from prediction import load
from run.config_file import load_config
from tests.helpers.runs import records, train


@pytest.fixture
def before(world, tmp_path) -> Path:
    """The run's folder, its configuration on the data of these tests."""
    folder = tmp_path / "runs" / "before"
    shutil.copytree(Path(__file__).with_name("of_before"), folder)
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace("runs: runs", f"runs: {folder.parent}").replace("world/", f"{world}/"), encoding="utf-8"
    )
    return folder


def test_a_checkpoint_of_before_has_the_figures_of_before(before):
    """What that version's `embed_texts` and evaluate.py gave."""
    model = load(str(before))
    vector = [-0.008157, -0.16458, -0.29884, 0.273125, -0.285688, -0.165964, -0.102684, 0.830204]
    assert model.embed_texts(["a red circle"])[0].tolist() == pytest.approx(vector, abs=2e-6)
    run = load_config(before / "config.yaml", ["data.tasks.shapes.split=heldout"])
    data = open_data(run.data, Pixels(run.model.image_size, run.model.patch), run.seed, model.vocabulary)
    metrics = EVALUATORS["classification"].evaluate(Evaluation(model.objective, data.sources[0])).metrics
    assert metrics["accuracy"] == 2 / 16 and metrics["top5_accuracy"] == 11 / 16


def test_a_run_of_before_goes_on(before):
    """Weights, both moments and the place in the data are there."""
    said = train(before / "config.yaml", "steps=3")
    assert f"run {before} continues at step 2" in said and "finished at step 3" in said
    assert [record["step"] for record in records(before.parents[1] / "any", "before")] == [3]
