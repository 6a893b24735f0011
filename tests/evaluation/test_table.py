"""The table of evaluators, and the names that it gives their figures."""

from __future__ import annotations

import json
import shutil

import pytest

from evaluation import Evaluation, evaluator_of, vqa
from evaluation.table import EVALUATORS, WRITTEN, figures_of
from run.config_file import load_config
from run.data import open_run_data
from tests.helpers.models import make
from tests.helpers.runs import tiny_config


@pytest.fixture(scope="module")
def opened(world, tmp_path_factory):
    """(objective, sources) with names of classes that are ranked or written; of shapes one metric more."""
    folder = tmp_path_factory.mktemp("table")
    shutil.copytree(world / "shapes", folder / "shapes")
    info = json.loads((folder / "shapes" / "dataset.json").read_text())
    (folder / "shapes" / "dataset.json").write_text(json.dumps(info | {"metrics": ["matthews"]}))

    def of(answer: str):
        words = [f"data.tasks.shapes.path={folder / 'shapes'}", f"data.tasks.shapes.answer={answer}"]
        run = load_config(tiny_config(world, folder), words)
        data = open_run_data(run)
        return make(run.model, data.vocabulary.size).eval(), {source.name: source for source in data.sources}

    return {answer: of(answer) for answer in ("rank", "generate")}


@pytest.mark.parametrize(
    ("task", "answer"),
    [("shapes", "rank"), ("shapes", "generate"), ("sentences", "rank"), ("captions", "rank"), ("retrieval", "rank")],
)
def test_figures_are_known_by_name_beforehand(opened, task, answer):
    objective, sources = opened[answer]
    source = sources[task]
    found = evaluator_of(source.task.config).evaluate(Evaluation(objective, source, source, limit=2, beam=1))
    assert sorted(found.metrics) == sorted(figures_of(source))
    assert ("matthews" in found.metrics) == (task == "shapes")


def test_figures_of_answers_are_known_by_name_beforehand():
    found = vqa.result_of([("red", ("red",) * 10, "other")], ("red", "blue")).metrics
    for evaluator in (EVALUATORS["vqa"], WRITTEN["vqa"]):
        assert sorted(found) == sorted((evaluator.figure, evaluator.floor, *evaluator.others))
