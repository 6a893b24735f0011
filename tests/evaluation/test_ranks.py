"""Evaluators on several ranks give the figures of one, to the last digit that is reported."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation import EVALUATORS, Evaluation
from evaluation.intervals import intervals_of
from evaluation.table import CAPTIONS, RECALLS
from model.initialise import initialise
from model.objective import Objective
from parallel.collectives import Axis
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.config_file import load_config
from tests.helpers.distributed import run_ranks
from tests.helpers.runs import LAUNCHER, ROOT, environment, saved_run, tiny_config, train

LIMIT = 13  # in batches of four: three and one sample, so that on three ranks two batches are nothing but filling


def figures(rank: int, config: str, ranks: int) -> dict[str, dict]:
    run = load_config(config)
    tasks = tuple(dataclasses.replace(task, split="heldout") for task in run.data.tasks)
    pixels = Pixels(run.model.image_size, run.model.patch)
    opened = open_data(run.data, pixels, run.seed)
    vocabulary, training = opened.vocabulary, {source.name: source for source in opened.sources}
    sources = open_data(dataclasses.replace(run.data, tasks=tasks), pixels, run.seed, vocabulary).sources
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels("torch"))
    initialise(objective, run.seed)
    objective.eval()
    if ranks > 1:
        dist.init_process_group("gloo")
    axis = Axis("data", ranks, rank, dist.group.WORLD if ranks > 1 else None)
    found = {}
    for source in sources:
        kind = source.task.config.kind
        other = training[source.name] if kind == "masked_text" else None
        evaluation = Evaluation(objective, source, other, "cpu", 4, LIMIT, ranks=axis)
        result = EVALUATORS[kind].evaluate(evaluation)
        ends = {
            f"{name} {side}": end
            for name, pair in intervals_of(result.samples).items()
            for side, end in enumerate(pair)
        }
        found[source.name] = result.metrics | ends
    if ranks > 1:
        dist.destroy_process_group()
    return found


def test_three_ranks_give_the_figures_of_one(config):
    torch.set_num_threads(1)
    alone = figures(0, str(config), 1)
    assert alone.keys() == {"shapes", "clips", "sentences", "captions", "retrieval"}
    assert alone["shapes"]["samples"] == alone["captions"]["samples"] == alone["retrieval"]["images"] == LIMIT
    # Every figure but floors and counts has an interval, its own or the main one.
    assert {name.split()[0] for name in alone["captions"] if " " in name} == {*CAPTIONS} - {"samples"}
    assert {f"{name} 0" for name in ("loss", "perplexity")} < alone["sentences"].keys()
    assert {f"{name} 1" for name in ("top5_accuracy", "mean_class_accuracy")} < alone["shapes"].keys()
    ranked = {name.split()[0] for name in alone["retrieval"] if " " in name}
    assert ranked == {*RECALLS, "image_to_text_r1"} - {"text_to_image_chance", "images", "texts"}
    for found in run_ranks(3, figures, str(config), 3):
        for task, metrics in alone.items():
            assert found[task] == pytest.approx(metrics, rel=1e-6), task


@pytest.mark.slow
def test_the_launcher_gives_the_figures_of_one_process(config):
    train(config, "steps=3")
    run = ["--run", str(config.parent / "runs" / "tiny"), "--split", "heldout", "--batch-size", "5", "--threads", "1"]

    def evaluated(*words) -> list[dict]:
        done = subprocess.run(
            [*map(str, words), str(ROOT / "evaluate.py"), *run], cwd=ROOT, env=environment(),
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    alone = evaluated(sys.executable)
    assert len(alone) == 5 and evaluated(LAUNCHER, "--num_gpus=2", "--master_port=29871") == alone


@pytest.mark.slow
def test_a_damaged_sample_ends_all_ranks_with_its_code_and_a_line(world, tmp_path):
    """The second half of the shard is no archive any more, so the second rank alone meets it in its first batch."""
    own = shutil.copytree(world / "shapes", tmp_path / "own")
    run = saved_run(tiny_config(world, tmp_path), f"data.tasks.shapes.path={own}")
    (shard,) = own.glob("heldout-*.tar")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2] + bytes(255 - byte for byte in content[len(content) // 2 :]))
    words = ["--run", str(run), "--split", "heldout", "--tasks", "shapes", "--batch-size", "8", "--threads", "1"]
    done = subprocess.run(
        [str(LAUNCHER), "-q", "--num_gpus=2", "--master_port=29873", str(ROOT / "evaluate.py"), *words],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in told, told
    assert told.count("error: cannot evaluate on damaged data: task shapes") == 1
    assert (
        "stopped: rank 1 failed first" in told or "rank 0 stopped" not in told
    )  # the launcher may have ended it before
