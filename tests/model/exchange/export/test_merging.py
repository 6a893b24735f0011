"""What the tokens of each kind of task are to a router, held against what its batches hold; gates and merged weights by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.batch import Modality
from data.stream.source import open_data
from data.tasks import TASKS
from data.tasks.base import Pixels
from model.exchange.export.merging import ATTRIBUTES, OF_KIND, entries, merging_of_modality, merging_of_task
from run.config_file import load_config
from tests.helpers.models import tiny
from tests.helpers.runs import tiny_config


def test_every_kind_of_task_has_its_attributes():
    assert OF_KIND.keys() == TASKS.keys()
    assert {name for names in OF_KIND.values() for name in names} == ATTRIBUTES.keys()


def test_they_are_those_of_its_batches(world, tmp_path):
    run = load_config(tiny_config(world, tmp_path))
    for source in open_data(run.data, Pixels(32, 8), 0).sources:
        task = source.task
        batch = task.batch([task.example(source.shards.read(0, i), np.random.default_rng(0)) for i in range(2)], None)
        found = {s.attributes for side in (batch.inputs, batch.candidates) for s in side.segments}
        assert found == {ATTRIBUTES[name] for name in OF_KIND[task.config.kind]}, task.config.kind


class Given:
    """Tensors that are there."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def test_a_merged_weight_is_the_sum_that_the_gate_says():
    """Modality 0 has logits (log 3, 0) by its embedding (1, 0): weights 3/4 and 1/4 of 4 and 8 are 5."""
    config = tiny("modality", {"num_experts": 2, "top_k": 2}, width=4)
    block = "tower__encoder__blocks__0__ffn"
    given = Given(
        **{
            f"{block}_path__router__embed__weight": torch.eye(3, 4),
            f"{block}_path__router__gate__weight": torch.tensor([[3.0, 1, 1, 1], [1.0, 1, 1, 1]]).log(),
            f"{block}__up__bank__bias": torch.tensor([[4.0], [8.0]]),
            "tower__output_norm__bias": torch.ones(4),
        }
    )
    found = {e.name: e.make() for e in entries(given, config, merging_of_modality(config, Modality.TEXT))}
    assert found.keys() == {"tower.encoder.blocks.0.ffn.up.linear.bias", "tower.output_norm.bias"}
    assert found["tower.encoder.blocks.0.ffn.up.linear.bias"].item() == pytest.approx(5)


@pytest.mark.parametrize(("router", "count"), [("attribute", 3), ("modality", 2), ("task", 1)])
def test_a_task_of_captions_meets_so_many_keys(router, count):
    merging = merging_of_task(tiny(router), "caption", "captioning", (Modality.IMAGE,))
    assert len(merging.keys) == count and merging.is_dense == (count == 1)
