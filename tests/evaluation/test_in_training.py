"""Evaluation between steps: the figures of one process on every layout, and nothing of the training changes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation.config import EvaluateConfig
from evaluation.in_training import InTraining
from model.initialise import initialise
from model.objective import Objective
from parallel.health.claim import FolderError
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.config_file import load_config
from tests.helpers.distributed import run_ranks
from tests.helpers.runs import records, train

LIMIT = 13  # in batches of four, the last one filled up
ROUTERS = {
    "attribute": "model.experts={router: attribute, num_experts: 4, top_k: 2, placement: odd}",
    "token": "model.experts={router: token, num_experts: 4, top_k: 2, placement: odd}",
}


def figures(rank: int, config: str, router: str, tensor: int, expert: int, ranks: int) -> dict[str, float]:
    run = load_config(config, [ROUTERS[router]])
    data = open_data(run.data, Pixels(run.model.image_size, run.model.patch), run.seed)
    if ranks == 1:
        mesh = Mesh()
    else:
        from parallel.mesh import create_mesh

        mesh = create_mesh(tensor, expert)
    objective = Objective(run.model, data.vocabulary.size, mesh, load_kernels("torch"))
    initialise(objective, run.seed)
    options = EvaluateConfig(every=2, split="heldout", limit=LIMIT, batch_size=4, beam=2)
    folder = run.folder / f"{tensor}_{expert}"
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = InTraining.open(options, run.data, data, objective, contextlib.nullcontext, mesh, folder)
    assert evaluation.figures(1, 5, print, lambda: None) == {}
    told: list[str] = []
    found = evaluation.figures(2, 5, told.append, lambda: None)
    assert objective.training and "heldout at step 2: shapes accuracy 0." in told[0] and found.pop("evaluation_s") > 0
    return found


def test_a_place_that_cannot_be_written_is_one_line(config):
    folder = config.parent / "runs" / "tiny" / "1_1"
    folder.mkdir(parents=True)
    (folder / "evaluations").write_text("in the way")
    with pytest.raises(FolderError, match=r"1_1: the evaluation of step 2 cannot be kept: File exists; mend that and"):
        figures(0, str(config), "attribute", 1, 1, 1)


def figures_that_differ(rank: int, folder: str) -> dict[str, float]:
    """Each rank finds a figure of its own, as expert ranks may in the last bits."""
    from parallel.mesh import create_mesh

    row = {"figure": "accuracy", "metrics": {"accuracy": 0.5 + rank / 1024}}
    source: Any = SimpleNamespace(name="a")
    config, nothing = EvaluateConfig(every=1), contextlib.nullcontext
    evaluation = InTraining(config, (source,), {}, torch.nn.Module(), nothing, create_mesh(1, 1), Path(folder))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(InTraining, "_row", lambda self, source, alive: row)
        patched.setattr("evaluation.in_training.keep", lambda *_: None)
        found = evaluation.figures(1, 1, lambda line: None, lambda: None)
    found.pop("evaluation_s")
    return found


def test_all_ranks_have_the_figures_of_the_first(tmp_path):
    assert run_ranks(2, figures_that_differ, str(tmp_path)) == [{"val/a/accuracy": 0.5}] * 2


MORE = pytest.mark.parity


@pytest.mark.parametrize(
    ("router", "tensor", "expert", "ranks"),
    [
        pytest.param("attribute", 1, 2, 2, marks=MORE),
        ("token", 2, 2, 4),
        pytest.param("attribute", 2, 1, 2, marks=MORE),
        pytest.param("attribute", 2, 2, 4, marks=MORE),
        pytest.param("token", 2, 1, 2, marks=MORE),
        pytest.param("token", 1, 2, 2, marks=MORE),
    ],
)
def test_every_layout_gives_the_figures_of_one_process(config, router, tensor, expert, ranks):
    torch.set_num_threads(1)
    alone = figures(0, str(config), router, 1, 1, 1)
    assert {key.split("/")[1] for key in alone} == {"shapes", "clips", "sentences", "captions", "retrieval"}
    for found in run_ranks(ranks, figures, str(config), router, tensor, expert, ranks):
        assert found == pytest.approx(alone, rel=1e-5)
    kept = config.parent / "runs" / "tiny" / f"{tensor}_{expert}" / "evaluations" / "heldout_step_00000002.json"
    assert len(json.loads(kept.read_text())["results"]) == 5


@pytest.mark.slow
def test_a_training_is_the_same_with_evaluation(config):
    out = train(config, "name=with", "evaluate={every: 2, limit: 8}", ranks=2)
    train(config, "name=without", ranks=2)
    with_it, without = records(config, "with"), records(config, "without")
    assert [
        {key: value for key, value in record.items() if key.startswith(("loss/", "grad_norm"))} for record in with_it
    ] == [{key: value for key, value in record.items() if key.startswith(("loss/", "grad_norm"))} for record in without]
    assert [r["step"] for r in with_it if "val/shapes/accuracy" in r] == [2, 4, 6]
    assert "val at step 6: shapes accuracy" in out
    folder = config.parent / "runs" / "with" / "evaluations"
    assert sorted(path.name for path in folder.glob("*.json")) == [f"val_step_0000000{n}.json" for n in (2, 4, 6)]
