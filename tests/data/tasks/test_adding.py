"""A new kind of task is a class, a line in the table and an evaluator: here one is added from outside and trained."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys

import pytest
import yaml

from data.config import TaskConfig
from data.tasks import TASKS, kind_of
from plan.sizes import describe, task_cost
from run.config_file import load_config
from run.errors import ConfigError
from tests.helpers.places import ROOT
from tests.helpers.runs import environment, records

MODULE = """
import torch
from data.attributes import CAPTION_TEXT
from data.batch import Sequences, TaskBatch
from data.decode.text import decode_text
from data.tasks.base import WordTask
from data.tasks.segments import text_segment


class FirstWord(WordTask):
    '''Which word does the text begin with? The answer is read at <SPE>.'''

    reads = ("text",)
    has_pictures = False
    default_temperature = "text"

    @classmethod
    def text_tokens(cls, config):
        return config.max_text - 1

    def example(self, sample, generator):
        return self.vocabulary.encode(decode_text(sample["txt"]), self.config.max_text)

    def batch(self, examples, generator):
        sample = 0 if generator is None else self.context.vocabulary_sample
        targets = self.words.targets([tokens[0] for tokens in examples], sample, generator)
        rest = Sequences(segments=(text_segment([tokens[1:] for tokens in examples], CAPTION_TEXT),))
        return TaskBatch(
            task=self.config.name,
            inputs=rest,
            read_Q2=torch.tensor([[row, 0] for row in range(len(examples))]),
            candidates=targets.candidates,
            candidate_log_weights_C=targets.log_weights_C,
            labels_Q=targets.labels_Q,
            temperature=self.temperature,
            weight=self.config.loss_weight,
        )
"""


TRAIN = """
import sys
import train
from data.tasks import TASKS
from first_word import FirstWord
TASKS["first_word"] = FirstWord
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path):
    """Where the module lies, as that of somebody else."""
    (tmp_path / "first_word.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def first_word(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    kind = importlib.import_module("first_word").FirstWord
    monkeypatch.setitem(TASKS, "first_word", kind)
    yield kind
    del sys.modules["first_word"]


def test_an_added_task_trains_two_steps(folder, config):
    raw = yaml.safe_load(config.read_text())
    sentences = next(task for task in raw["data"]["tasks"] if task["name"] == "sentences")
    raw["data"]["tasks"] = [sentences | {"name": "openings", "kind": "first_word"}]
    raw["steps"], raw["data"]["workers"], raw["parallel"]["expert"] = 2, 1, 1
    config.write_text(yaml.safe_dump(raw))
    paths = os.pathsep.join([str(folder), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", TRAIN, "--config", str(config)],
        cwd=ROOT, env=environment() | {"PYTHONPATH": paths}, check=True, timeout=120,
    )  # fmt: skip
    losses = [record["loss/openings"] for record in records(config)]
    assert len(losses) == 2 and all(map(math.isfinite, losses))


def test_the_rest_of_the_program_knows_it_from_its_class(first_word, config):
    task = TaskConfig(name="openings", kind="first_word", path="nowhere", max_text=8, batch_tokens=80)
    assert kind_of(task).most_tokens(task, 4, video=False) == 1 + 7
    assert kind_of(task).with_batch_size(task, 4, video=False).batch_size == 10
    run = load_config(config)
    cost = task_cost(task, run.model, vocabulary_size=40)
    assert (cost.tokens, cost.visual_tokens, cost.reads, cost.candidates) == (8, 0, 1, (40, 2))
    assert "sentences" in describe(load_config(config, ["data.tasks.sentences.kind=first_word"]))


def test_an_unknown_kind_is_one_line_with_the_nearest_name(config):
    with pytest.raises(ConfigError, match="task sentences: unknown kind='maskd_text'; did you mean masked_text"):
        load_config(config, ["data.tasks.sentences.kind=maskd_text"])
