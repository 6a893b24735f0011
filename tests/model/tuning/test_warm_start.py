"""Weights of another run in a fresh network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.config import LoraConfig, ModelConfig, PromptConfig
from model.exchange.export.errors import ExportError
from model.objective import Objective
from model.tuning.warm_start import WarmStart, take_only, warm_start, warm_start_from_export
from parallel.checkpoints import CheckpointError, Fragment, open_checkpoint, save
from parallel.placement import placement_of
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny

IDS = tuple(range(VOCABULARY_SIZE))
DENSE = {"placement": "none"}


def saved(objective: Objective, folder: Path) -> Path:
    """A checkpoint of weights alone."""
    fragments = [
        Fragment(name, placement_of(p), 0, True, {"weight": p.detach().reshape(-1)})
        for name, p in objective.named_parameters()
    ]
    return save(folder, 1, fragments, {}).folder


def started(
    config: ModelConfig, folder: Path, ids: tuple[int, ...] = IDS, seed: int = 1, theirs: ModelConfig | None = None
) -> tuple[Objective, WarmStart]:
    """theirs: options of the network in the folder, where they matter."""
    objective = make(config, vocabulary_size=len(ids), seed=seed)
    return objective, warm_start(objective, open_checkpoint(folder), theirs or config, IDS, ids)


def test_prompts_and_heads_are_new_and_all_else_is_taken(tmp_path):
    other = make(tiny(prompts=PromptConfig(length=3), head_classes=5))
    config = tiny(prompts=PromptConfig(length=2), head_classes=4, lora=LoraConfig(rank=1))
    own, start = started(config, saved(other, tmp_path))
    there = dict(other.named_parameters())
    for name, parameter in own.named_parameters():
        assert (name in start.as_it_is) == (name not in start.new)
        if name in start.as_it_is:
            assert torch.equal(parameter, there[name]), name
    assert {name.rsplit(".", 1)[-1] for name in start.new if ".lora." not in name} == {
        "prompts", "spe_bias", "weight", "bias", "similarity_weight",
    }  # fmt: skip
    assert "new: 2 head, 16 lora, 2 prompts, 1 similarity_weight, 1 spe_bias" in str(start)
    assert "left there: 2 head, 2 prompts, 1 similarity_weight, 1 spe_bias" in str(start)


def test_tokens_are_found_by_what_they_mean(tmp_path):
    other = make(tiny())
    ids = (*IDS[5:-1], 900, IDS[-1])  # five are gone, one is new; <SPE> stays the last
    own, start = started(tiny(), saved(other, tmp_path), ids)
    fresh = make(tiny(), vocabulary_size=len(ids), seed=1).tower.embedding.tokens.weight
    old, table = other.tower.embedding.tokens.weight, own.tower.embedding.tokens.weight
    assert torch.equal(table[: len(ids) - 2], old[5 : len(IDS) - 1])
    assert torch.equal(table[len(ids) - 2], fresh[len(ids) - 2])
    assert torch.equal(table[len(ids) - 1], old[len(IDS) - 1])
    assert start.tokens == (len(ids) - 1, len(ids))
    assert f"{len(ids) - 1} of {len(ids)} tokens by name" in str(start)


@pytest.mark.parametrize("router", ["attribute", "task", "token"])
def test_experts_begin_as_copies_of_dense_layers_and_compute_the_same(tmp_path, router):
    dense = make(tiny(experts=DENSE)).eval()
    own, start = started(tiny(router), saved(dense, tmp_path))
    batch = BATCHES["caption"](0)
    assert own.eval()(batch).loss.item() == pytest.approx(dense(batch).loss.item(), abs=1e-5)
    assert len(start.copied) == 8 and "8 banks of experts copied" in str(start)
    bank = own.tower.encoder.blocks[0].ffn.up.bank.weight
    assert torch.equal(bank, dense.tower.encoder.blocks[0].ffn.up.linear.weight.expand_as(bank))


def test_whole_networks_begin_as_copies(tmp_path):
    dense = make(tiny("limoe", experts=DENSE))
    own, _ = started(tiny("limoe"), saved(dense, tmp_path))
    experts = own.tower.encoder.blocks[1].ffn.experts
    linear = dense.tower.encoder.blocks[1].ffn.down.linear
    assert torch.equal(experts.down.weight[3], linear.weight) and torch.equal(experts.up.bias[2], experts.up.bias[0])


def upcycled(rank: int, folder: str, expert: int, tensor: int) -> float:
    from parallel.kernels import load_kernels
    from parallel.mesh import create_mesh

    mesh = create_mesh(tensor, expert)
    objective = Objective(tiny(), VOCABULARY_SIZE, mesh, load_kernels("torch"))
    from model.initialise import initialise

    initialise(objective, 1)
    ids = (*IDS[5:-1], 900, IDS[-1])
    objective_ids = (*ids, *range(1000, 1000 + VOCABULARY_SIZE - len(ids)))
    warm_start(objective, open_checkpoint(Path(folder)), tiny(), IDS, objective_ids)
    return objective.eval()(BATCHES["image"](0)).loss.item()


def test_any_layout_starts_alike(tmp_path):
    folder = saved(make(tiny(experts=DENSE)), tmp_path)
    expected = run_ranks(1, upcycled, str(folder), 1, 1)[0]
    for layout in ((2, 1), (1, 2)):
        assert run_ranks(2, upcycled, str(folder), *layout) == pytest.approx([expected] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "of another model: missing .*blocks.2"),
        ({"depth": 1}, "of another model: .*unknown .*blocks.1"),
        ({"ffn": 64}, r"ffn.down.bank.weight has shape \(4, 16, 32\), this model needs \(4, 16, 64\)"),
        ({"experts": dataclasses.replace(tiny().experts, placement="none")}, "of another model: missing"),
    ],
)  # fmt: skip
def test_another_network_is_refused(tmp_path, options, message):
    folder = saved(make(tiny()), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        started(dataclasses.replace(tiny(), **options), folder)


@pytest.mark.parametrize(
    ("theirs", "ours", "option"),
    [
        ({}, {"heads": 4}, "model.heads=4, there 2"),
        ({"lora": LoraConfig(rank=2, alpha=4.0)}, {"lora": LoraConfig(rank=2)}, "model.lora.alpha=16.0, there 4.0"),
    ],
)
def test_what_no_shape_tells_is_refused(tmp_path, theirs, ours, option):
    """Rows of QKV are ordered by heads, and an update has a factor."""
    folder = saved(make(tiny(**theirs)), tmp_path)
    with pytest.raises(CheckpointError, match=f"is of another model: {option}: weights of the same shapes"):
        started(tiny(**ours), folder, theirs=tiny(**theirs))
    started(tiny(**theirs), folder)


def test_numbers_of_tasks_are_those_of_the_other_run(tmp_path):
    theirs = tiny("task")
    folder = saved(make(theirs), tmp_path)
    with pytest.raises(CheckpointError, match=r"the order of data\.tasks="):
        started(dataclasses.replace(theirs, tasks=theirs.tasks[::-1]), folder, theirs=theirs)


def test_chosen_parameters_alone_and_tokens_by_what_they_mean(tmp_path):
    """The tables have 64 rows on both sides, whatever stands in them."""
    other, ids = make(tiny()), (*IDS[5:-1], 900, IDS[-1])
    checkpoint = open_checkpoint(saved(other, tmp_path))
    own, fresh = (make(tiny(), vocabulary_size=len(ids), seed=1) for _ in range(2))
    only = ("*.tokens.weight", "tower.embedding.patches.*")
    start = take_only(own, checkpoint, only, tiny(), IDS, ids)
    there, before = dict(other.named_parameters()), dict(fresh.named_parameters())
    assert start.as_it_is == ("tower.embedding.patches.bias", "tower.embedding.patches.weight")
    assert start.tokens == (len(ids) - 1, len(ids))
    for name, parameter in own.named_parameters():
        if name == "tower.embedding.tokens.weight":
            assert torch.equal(parameter[: len(ids) - 2], there[name][5 : len(IDS) - 1])
            assert torch.equal(parameter[len(ids) - 2], before[name][len(ids) - 2])
        else:
            assert torch.equal(parameter, (there if name in start.as_it_is else before)[name])
            assert (name in start.new) == (name not in start.as_it_is)


@pytest.mark.parametrize(
    ("only", "options", "message"),
    [
        (("tower.*", "wieght"), {}, "no parameter of the model matches 'wieght', which is to be taken from"),
        (("head.*",), {"head_classes": 3}, "of another model: it has no head.bias, head.weight"),
        (("*.ffn.*",), {"ffn": 64}, "leave out options of `model`"),
        (("*.attention.*",), {"heads": 4}, "model.heads=4, there 2"),
    ],
)
def test_chosen_parameters_that_do_not_fit_are_refused(tmp_path, only, options, message):
    checkpoint = open_checkpoint(saved(make(tiny()), tmp_path))
    own = make(tiny(**options))
    with pytest.raises(CheckpointError, match=message):
        take_only(own, checkpoint, only, tiny(), IDS, IDS)
    take_only(own, checkpoint, ("tower.embedding.*",), tiny(), IDS, IDS)  # which none of these options is about


def test_a_larger_image_and_a_learned_table(tmp_path):
    """Two patches a side, then four: the message names what makes it fit."""
    theirs = tiny(positions="learned")
    folder, larger = saved(make(theirs), tmp_path), dataclasses.replace(theirs, image_size=32)
    remedy = r"set model.position_grid=2, which keeps the table, and model.position_scale=0.5, which spreads it"
    with pytest.raises(CheckpointError, match=remedy):
        started(larger, folder)
    shapes = {name: placement_of(p).shape for name, p in make(theirs).named_parameters()}
    export: Any = SimpleNamespace(folder=tmp_path, shapes=shapes, load=lambda *_, **__: pytest.fail("it does not fit"))
    with pytest.raises(ExportError, match=remedy):
        warm_start_from_export(make(larger), export)
    started(dataclasses.replace(larger, position_grid=2, position_scale=0.5), folder)
