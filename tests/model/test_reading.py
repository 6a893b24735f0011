"""Tokens that are read out, and a last block that computes no others behind its attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from data.batch import TaskBatch
from model.config import LoraConfig, PromptConfig
from model.layout import layout_of
from model.reading import Reading, read_tokens
from tests.helpers.batches import BATCHES, captioning
from tests.helpers.models import make, tiny
from tests.model.test_tower import assert_equal

ALL = {"placement": "all"}
KINDS = {
    "dense": tiny("dense"),
    "merge": tiny("attribute", ALL),
    "merge, recomputed": tiny("attribute", ALL, activation_checkpointing="block", drop_path=0.3, layer_scale=0.1),
    "merge, half recomputed": tiny("attribute", ALL, activation_checkpointing="selective", drop_path=0.3),
    "chunks": tiny("attribute", ALL, chunks=2),
    "prompts": tiny("attribute", ALL, prompts=PromptConfig(length=3)),
    "low rank": tiny("attribute", ALL, lora=LoraConfig(rank=2)),
}


def everywhere(batch: TaskBatch) -> TaskBatch:
    """Of captions: also a patch and <SPE>, before the words of their row and behind them, and a word twice."""
    read_Q2 = torch.tensor([[0, 9], [0, 2], [0, 0], [0, 10], [1, 12], [1, 12], [1, 4]])
    return dataclasses.replace(batch, read_Q2=read_Q2)


def test_reads_of_a_group_stand_together():
    """Rows of <SPE>, four patches, four words and four places to read, which are another group than the patches: three reads in the first,
    four in the second. <SPE> of the candidates is in their only group, the third."""
    batch = everywhere(captioning()).located()
    readings = (Reading(batch.inputs, batch.read_Q2), Reading.of_targets(batch.candidates))
    inputs = layout_of(batch.inputs, by_group=True)
    layouts = (inputs, layout_of(batch.candidates, start=inputs.end, by_group=True))
    assert inputs.tokens.groups[0] != inputs.tokens.groups[1] and len(inputs.tokens.groups) == 2
    reads = read_tokens(readings, layouts)
    assert reads.blocks == ((0, 3, 0), (3, 7, 1), (7, 16, 2)) and reads.counts == (7, 9)
    places = inputs.place_T[reads.token_R[:7]].tolist()
    assert places == [2, 0, 13 + 4, 9, 10, 13 + 12, 13 + 12]
    back_QD, rest_CD = reads.of_each(torch.arange(16.0)[:, None])
    assert back_QD.flatten().tolist() == [3, 0, 1, 4, 5, 6, 2] and rest_CD.flatten().tolist() == list(range(7, 16))


def test_without_groups_the_order_is_that_of_the_reads():
    batch = everywhere(captioning()).located()
    layout = layout_of(batch.inputs)
    reads = read_tokens((Reading(batch.inputs, batch.read_Q2),), (layout,))
    places_Q = batch.read_Q2[:, 0] * layout.tokens.length + batch.read_Q2[:, 1]
    assert torch.equal(layout.place_T[reads.token_R], places_Q) and reads.back == (None,) and reads.blocks == ()


def test_the_host_knows_where_a_located_batch_is_read():
    batch = captioning().located()
    assert batch.read_host_Q2 is not None and np.array_equal(batch.read_host_Q2, batch.read_Q2.numpy())


@contextmanager
def late() -> Iterator[None]:
    """All tokens go through the last block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.config.ModelConfig.reads_early", lambda self, layer: False)
        yield


def result(config, batch: TaskBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    objective = make(config)
    losses = objective(batch, noise=5 if config.drop_path else None)
    losses.total.backward()
    return losses.total.detach(), {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", [*BATCHES, "everywhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_block_gives_the_same_for_fewer_tokens(kind, task):
    """Loss, and gradients of everything."""
    batch = everywhere(captioning()) if task == "everywhere" else BATCHES[task]()
    config = KINDS[kind]
    assert config.reads_early(1) and not config.reads_early(0)
    early = result(config, batch)
    with late():
        assert_equal(early, result(config, batch), rtol=1e-4, atol=3e-5)


def test_fewer_tokens_go_through_it():
    objective, batch = make(KINDS["merge"]), captioning()
    rows = []
    objective.tower.encoder.blocks[1].ffn.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    objective(batch)
    assert rows == [7 + 9]


@pytest.mark.parametrize(
    "config", [tiny("token", ALL), tiny("limoe"), tiny("dense", readout="mean")], ids=["tokens", "networks", "mean"]
)
def test_all_tokens_go_where_they_compete_or_count(config):
    assert not any(config.reads_early(layer) for layer in range(2))
