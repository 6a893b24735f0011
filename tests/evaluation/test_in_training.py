"""Evaluation between steps: the figures of one process on every layout, and nothing of the training changes."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from data.shards import DatasetInfo, ShardSet, SplitInfo, write_info
from data.shards.writing import write_shards
from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation.config import EvaluateConfig
from evaluation.in_training import Found, InTraining
from model.initialise import initialise
from model.objective import Objective
from parallel.checkpoints import newest_state
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


def figures(
    rank: int, config: str, router: str, tensor: int, expert: int, ranks: int, **of_evaluation: Any
) -> dict[str, float]:
    run = load_config(config, [ROUTERS[router]])
    data = open_data(run.data, Pixels(run.model.image_size, run.model.patch), run.seed)
    if ranks == 1:
        mesh = Mesh()
    else:
        from parallel.mesh import create_mesh

        mesh = create_mesh(tensor, expert)
    objective = Objective(run.model, data.vocabulary.size, mesh, load_kernels("torch"))
    initialise(objective, run.seed)
    options = EvaluateConfig(every=2, split="heldout", limit=LIMIT, batch_size=4, beam=2, **of_evaluation)
    folder = run.folder / f"{tensor}_{expert}"
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = InTraining.open(options, run.data, data, objective, contextlib.nullcontext, mesh, folder, 5)
    assert evaluation.found(1, print, lambda: None) == Found()
    told: list[str] = []
    state = torch.get_rng_state()
    found = evaluation.found(2, told.append, lambda: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.training and "heldout at step 2: shapes accuracy 0." in told[0]
    assert found.figures.pop("evaluation_s") == found.seconds > 0 and not found.is_asked and not found.is_put_off
    return found.figures


def test_a_place_that_cannot_be_written_is_one_line(config):
    folder = config.parent / "runs" / "tiny" / "1_1"
    folder.mkdir(parents=True)
    (folder / "evaluations").write_text("in the way")
    with pytest.raises(FolderError, match=r"1_1: the evaluation of step 2 cannot be kept: File exists; mend that and"):
        figures(0, str(config), "attribute", 1, 1, 1)


def test_workers_change_neither_figures_nor_random_numbers(config):
    ways = [figures(0, str(config), "attribute", 1, 1, 1, tasks=("shapes",), workers=workers) for workers in (0, 1)]
    assert ways[0] == ways[1] and ways[0]["heldout/shapes/accuracy"] >= 0
    with pytest.raises(ValueError, match="workers=-1 must not be negative"):
        EvaluateConfig(workers=-1)


def found_by(
    rank: int, folder: str, asked: tuple[int, int] | None = None, step: int = 2
) -> tuple[dict[str, float], bool, bool, list[str]]:
    """Of tasks a and b at step 2. Each rank finds a figure of its own, as expert ranks may in the last bits. asked: a rank that is to stop
    from so many tasks on."""
    from parallel.mesh import create_mesh

    row = {"figure": "accuracy", "metrics": {"accuracy": 0.5 + rank / 1024}, "digest": "d", "asked": "", "options": {}}
    evaluated: Any = tuple(SimpleNamespace(name=name) for name in "ab")
    config, nothing = EvaluateConfig(every=2), contextlib.nullcontext
    objective: Any = torch.nn.Module()
    evaluation = InTraining(config, evaluated, objective, nothing, create_mesh(1, 1), Path(folder), 8)
    done, told = list[str](), list[str]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(InTraining, "_row", lambda self, one, alive: done.append(one.name) or row)
        patched.setattr("evaluation.in_training.keep", lambda *_: None)
        is_asked = (lambda: (rank, len(done)) >= asked) if asked and asked[0] == rank else (lambda: False)
        found = evaluation.found(step, told.append, lambda: None, is_asked)
    assert objective.training
    return (
        {name: value for name, value in found.figures.items() if name != "evaluation_s"},
        found.is_asked,
        found.is_put_off,
        done,
    )


def test_all_ranks_have_the_figures_of_the_first(tmp_path):
    figures = {"val/a/accuracy": 0.5, "val/b/accuracy": 0.5}
    assert run_ranks(2, found_by, str(tmp_path)) == [(figures, False, False, ["a", "b"])] * 2


def test_an_evaluation_is_put_off_between_two_tasks(tmp_path):
    assert run_ranks(2, found_by, str(tmp_path), (1, 1)) == [({}, True, True, ["a"])] * 2
    figures, *rest = run_ranks(2, found_by, str(tmp_path), (1, 2))[0]
    assert len(figures) == 2 and rest == [True, False, ["a", "b"]]
    assert run_ranks(2, found_by, str(tmp_path), (1, 0), 3) == [({}, True, False, [])] * 2


MORE = pytest.mark.parity
LAYOUTS = pytest.mark.parametrize(
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


@LAYOUTS
def test_every_layout_gives_the_figures_of_one_process(config, router, tensor, expert, ranks):
    torch.set_num_threads(1)
    alone = figures(0, str(config), router, 1, 1, 1)
    assert {key.split("/")[1] for key in alone} == {"shapes", "clips", "sentences", "captions", "retrieval"}
    for found in run_ranks(ranks, figures, str(config), router, tensor, expert, ranks):
        assert found == pytest.approx(alone, rel=1e-5)
    kept = config.parent / "runs" / "tiny" / f"{tensor}_{expert}" / "evaluations" / "heldout_step_00000002.json"
    assert len(json.loads(kept.read_text())["results"]) == 5


def with_answers(config: Path, world: Path) -> Path:
    """The configuration with shapes, with sentences that have a class, with questions, and with shapes whose names are written."""
    folder = config.parent
    shapes = ShardSet.open(world / "shapes", "heldout")
    people = [["circle"] * 10, ["star"] * 3 + ["circle"] * 7, ["moon"] * 10]
    samples = {
        "films": [{"txt": f"a red circle and {n} others", "cls": n * n % 3 % 2} for n in range(16)],
        "questions": [
            {
                "png": shapes.read(0, n)["png"],
                "cls": 0,
                "json": {"question": f"is it {n} or a star ?", "answers": people[n % 3], "answer_type": "other"},
            }
            for n in range(16)
        ],
    }
    kinds = {"films": "text_class", "questions": "image_question"}
    for name, of_set in samples.items():
        write_shards(folder / name, "heldout", iter([{"__key__": f"{n:02d}"} | one for n, one in enumerate(of_set)]))
        split = SplitInfo(samples=16, shards=1)
        info = DatasetInfo(kind=kinds[name], classes=("circle", "star"), token_ids=(), splits={"heldout": split})  # type: ignore[arg-type]
        write_info(folder / name, info)
    raw = yaml.safe_load(config.read_text())
    (shape,) = [task for task in raw["data"]["tasks"] if task["name"] == "shapes"]
    raw["data"]["tasks"] = [
        shape,
        {"name": "films", "kind": "text_classification", "path": str(folder / "films"), "split": "heldout"},
        {"name": "questions", "kind": "vqa", "path": str(folder / "questions"), "split": "heldout"},
        shape | {"name": "names", "answer": "generate", "temperature": "text"},
    ]
    config.write_text(yaml.safe_dump(raw))
    return config


@MORE
@LAYOUTS
def test_answers_are_those_of_one_process_on_every_layout(config, world, router, tensor, expert, ranks):
    torch.set_num_threads(1)
    config = with_answers(config, world)
    alone = figures(0, str(config), router, 1, 1, 1)
    assert {key.split("/")[1] for key in alone} == {"shapes", "films", "questions", "names"}
    for found in run_ranks(ranks, figures, str(config), router, tensor, expert, ranks):
        assert found == pytest.approx(alone, rel=1e-5)


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


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 11])
def test_a_stop_in_an_evaluation_puts_it_off_to_the_next_start(config, call):
    """In the first evaluation and in the last one, which all steps are done before. Each has five tasks."""
    options = ("steps=6", "save_every=6", "evaluate={every: 2, limit: 8, keep_best: shapes/accuracy}")
    train(config, "name=undisturbed", *options, ranks=2)
    step = 2 * math.ceil(call / 5)
    out = train(config, *options, ranks=2, expect=85, sabotage=f"ask:1:{call}")
    assert f"asked to stop: the evaluation of step {step} is put off to the next start" in out
    assert f"stopped at step {step} and saved" in out
    assert [record["step"] for record in records(config)] == list(range(1, step))
    out = train(config, *options, ranks=2)
    assert f"val at step {step}: shapes accuracy" in out and "finished at step 6" in out

    def figures(name: str) -> list[dict[str, float]]:
        kinds = ("loss/", "grad_norm", "val/", "lr")
        return [
            {k: v for k, v in record.items() if k == "step" or k.startswith(kinds)} for record in records(config, name)
        ]

    assert figures("tiny") == figures("undisturbed") and len(figures("tiny")) == 6
    state = [newest_state(config.parent / "runs" / name / "checkpoints") for name in ("tiny", "undisturbed")]
    assert state[0] == state[1] and "owed" not in state[0]
