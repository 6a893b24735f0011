"""A network that has diverged is told, and is not the best of all."""

from __future__ import annotations

import pytest
import torch

from evaluation import EVALUATORS, Evaluation
from evaluation.kept import READ, options_of
from model.objective import NotFiniteError
from run.config_file import load_config
from run.data import open_run_data
from tests.helpers.models import make, tiny
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
    kept = {name: options_of(Evaluation(make(), source)).keys() for name, source in by_name.items()}
    every = {"limit", "max_text", "temperature"}
    assert kept["shapes"] == every | {"templates", "views"} and kept["captions"] == every | {"beam", "length_penalty"}
    assert kept["sentences"] == every | {"mask_rate", "mask_shares", "vocabulary"} and kept["retrieval"] == every
    assert kept["clips"] == kept["shapes"] | {"num_frames", "frame_sampling", "frame_stride"}


@pytest.mark.parametrize(
    ("training", "evaluating", "matters"), [(1.0, None, True), (1.0, 0.0, False), (0.0, 2.0, True)]
)
def test_batches_are_kept_where_samples_compete_for_experts(sources, training, evaluating, matters):
    *_, by_name = sources
    experts = {"capacity_factor": training, "eval_capacity_factor": evaluating}
    kept = options_of(Evaluation(make(tiny("token", experts)), by_name["retrieval"], batch_size=7))
    assert {key: kept[key] for key in kept if key not in READ} == {"limit": None} | (
        {"batch_size": 7, "ranks": 1} if matters else {}
    )
