"""Questions about pictures: what a batch holds, what is refused, and that a network can learn to answer them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.config import DataConfig, MixConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, write_info
from data.shards.errors import BadSample
from data.shards.writing import write_shards
from data.stream.source import Source, open_data
from data.tasks import kind_of
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from evaluation import EVALUATORS, Evaluation
from parallel.collectives import Axis
from tests.helpers.distributed import run_ranks
from tests.helpers.models import learned, make, tiny

ANSWERS = ("red", "blue", "one", "two")
QUESTIONS = ("which colour ?", "how many ?")


def sample(number: int, people: list[str] | None = None) -> dict:
    """Picture 0 or 1 and question 0 or 1: the answer follows from both."""
    picture, question = divmod(number % 4, 2)
    answer = 2 * question + picture
    about = {
        "question": QUESTIONS[question],
        "answers": people or [ANSWERS[answer]] * 10,
        "answer_type": "number" if question else "other",
    }
    pixels = np.full((16, 16, 3), 200 * picture, np.uint8)
    return {"__key__": f"{number:03d}", "png": encode_png(pixels), "cls": answer, "json": about}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four questions to train on; to evaluate, the four again, one of which half of the people answer otherwise, and one without a
    right candidate."""
    folder = tmp_path_factory.mktemp("asked")
    write_shards(folder, "train", map(sample, range(4)))
    last = sample(4, ["green"] * 10)
    del last["cls"]
    write_shards(folder, "val", iter([sample(0), sample(1), sample(2), sample(3, ["two"] * 2 + ["many"] * 8), last]))
    ids = sorted({49407, *Tokenizer.load().encode(" ".join((*ANSWERS, *QUESTIONS)))})
    splits = {"train": SplitInfo(4, 1), "val": SplitInfo(5, 1)}
    write_info(folder, DatasetInfo(kind="image_question", classes=ANSWERS, token_ids=tuple(ids), splits=splits))
    return folder


def opened(folder, split: str = "train", **options) -> Source:
    task = TaskConfig(name="image", kind="vqa", path=str(folder), split=split, batch_size=4, max_text=8, **options)
    return open_data(DataConfig(tasks=(task,), vocabulary="restricted"), Pixels(16, 8), 0).sources[0]


def encoded(sample: dict) -> dict:
    return sample | {"cls": str(sample["cls"]).encode(), "json": json.dumps(sample["json"]).encode()}


def test_a_batch(folder):
    task = opened(folder, template="{text} <spe> ?").task
    examples = [task.example(encoded(sample(n)), None) for n in range(4)]
    batch = task.batch(examples, None)
    visual, text = batch.inputs.segments
    # <SPE>, four patches, then "which colour ? <spe> ?" or "how many ? <spe> ?", each with end-of-text.
    assert visual.valid_BL.shape == (4, 4) and text.valid_BL.shape == (4, 6)
    assert batch.read_Q2.tolist() == [[row, 1 + 4 + 3] for row in range(4)] and batch.labels_Q.tolist() == [0, 2, 1, 3]
    assert text.values[0, 3] == task.vocabulary.spe and batch.candidates.num_rows == 4
    assert kind_of(task.config).most_tokens(task.config, 4, video=False) == 1 + 4 + 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"json": {}}, 'a text "question"'),
        ({"json": {"question": "a", "answers": []}}, 'a list "answers"'),
        ({"cls": 9}, "class 9 of 4"),
    ],
)
def test_bad_samples(folder, changes, reason):
    with pytest.raises(BadSample, match=reason):
        opened(folder).task.example(encoded(sample(0) | changes), None)


def test_training_needs_the_answer_among_the_candidates_and_does_not_mix(folder):
    without = encoded(sample(0))
    del without["cls"]
    task = opened(folder).task
    assert task.example(without, None).label == -1
    with pytest.raises(BadSample, match="no member cls"):
        task.example(without, np.random.default_rng(0))
    config = dataclasses.replace(task.config, mix=MixConfig(mixup=1.0))
    with pytest.raises(ValueError, match="not the questions"):
        kind_of(config).check(config)


def test_a_network_learns_to_read_picture_and_question(folder):
    torch.set_num_threads(1)
    source = opened(folder)
    objective = make(tiny(width=32, ffn=64), source.task.vocabulary.size)
    batch = source.task.batch(
        [source.task.example(source.shards.read(0, n), np.random.default_rng(0)) for n in range(4)], None
    )
    assert learned(objective, batch) == 4
    result = EVALUATORS["vqa"].evaluate(Evaluation(objective.eval(), opened(folder, "val"), batch_size=2))
    # Three right; "two" was said by 2 of 10: (2 / 3 + 8 * 2 / 3) / 10 = 0.6; none is right of "green".
    assert result.metrics["vqa_accuracy"] == pytest.approx((3 + 0.6) / 5) == result.metrics["answerable"]
    assert result.metrics["majority"] == pytest.approx(1 / 5) and result.metrics["samples"] == 5
    assert result.details["type_accuracy"] == {"number": pytest.approx(1.6 / 2), "other": pytest.approx(2 / 3)}


def figures(rank: int, folder: str, ranks: int) -> dict:
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo")
    axis = Axis("data", ranks, rank, dist.group.WORLD if ranks > 1 else None)
    source = opened(folder, "val")
    objective = make(tiny(), source.task.vocabulary.size).eval()
    result = EVALUATORS["vqa"].evaluate(Evaluation(objective, source, batch_size=2, ranks=axis))
    if ranks > 1:
        dist.destroy_process_group()
    return result.metrics


def test_two_ranks_give_the_figures_of_one(folder):
    alone = figures(0, str(folder), 1)
    assert run_ranks(2, figures, str(folder), 2) == [alone, alone]
