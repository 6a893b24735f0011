"""A network that has diverged is told, and is not the best of all."""

from __future__ import annotations

import pytest
import torch

from evaluation import EVALUATORS, Evaluation
from evaluation.kept import options_of
from model.objective import NotFiniteError
from run.config_file import load_config
from run.data import open_run_data
from tests.helpers.models import make
from tests.helpers.runs import tiny_config


@pytest.fixture(scope="module")
def sources(world, tmp_path_factory):
    run = load_config(tiny_config(world, tmp_path_factory.mktemp("diverged")))
    data = open_run_data(run)
    return run, data.vocabulary, {source.name: source for source in data.sources}


@pytest.mark.parametrize("task", ["shapes", "clips", "sentences", "captions", "retrieval"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_every_evaluator_refuses_what_is_not_finite(sources, task, value):
    run, vocabulary, by_name = sources
    objective = make(run.model, vocabulary.size).eval()
    with torch.no_grad():
        objective.tower.output_norm.bias[0] = value
    source = by_name[task]
    evaluation = Evaluation(objective, source, training=source, limit=4)
    with pytest.raises(NotFiniteError, match=f"task {task}: the network answers with numbers that are not finite"):
        EVALUATORS[source.task.config.kind].evaluate(evaluation)


def test_a_picture_alone_may_overflow(sources):
    """Names of classes are well: what is read of pictures is looked at by itself."""
    run, vocabulary, by_name = sources
    objective = make(run.model, vocabulary.size).eval()
    with torch.no_grad():
        objective.tower.embedding.patches.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="task shapes"):
        EVALUATORS["classification"].evaluate(Evaluation(objective, by_name["shapes"], limit=4))


def test_options_that_are_kept_are_those_that_change_a_kind(sources):
    *_, by_name = sources
    kept = {name: options_of(Evaluation(make(), source)) for name, source in by_name.items()}
    assert kept["shapes"].keys() == {"limit", "templates", "views"} and kept["captions"].keys() == {
        "limit",
        "beam",
        "length_penalty",
    }
    assert kept["sentences"].keys() == {"limit", "mask_rate", "mask_shares", "max_text", "vocabulary"}
    assert kept["retrieval"].keys() == {"limit"}
