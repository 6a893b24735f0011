"""Every preset builds without memory, and trains a step when made narrow."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.config import TextTowerConfig
from model.initialise import initialise
from model.moe.presets import ROUTING
from model.objective import Objective
from model.tuning.trained import freeze
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from plan.sizes import build_on_meta
from run.config import check_layout
from run.config_file import load_config
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.places import ROOT

FOLDER = ROOT / "configs" / "presets"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
BATCH_OF_KIND = {"classification": "image", "masked_text": "text", "captioning": "caption", "retrieval": "retrieval"}


def narrow(model):
    text = TextTowerConfig(width=8, depth=2, heads=2, ffn=16) if model.text_tower else None
    shape = {"width": 16, "depth": 4, "heads": 2, "ffn": 32, "image_size": 16, "patch": 8, "space": 0}
    return dataclasses.replace(model, **shape, max_frames=4, max_text=8, text_tower=text, chunks=min(2, model.chunks))


def train_one_step(run) -> None:
    objective = Objective(narrow(run.model), VOCABULARY_SIZE, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    freeze(objective, run.optimizer.frozen)
    tuned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=run.optimizer.lr)
    before = [parameter.detach().clone() for parameter in tuned]
    kinds = {task.kind: task for task in run.data.tasks}
    for kind, task in kinds.items():
        batch = BATCHES[BATCH_OF_KIND[kind]]()
        temperature = task.temperature or batch.temperature
        losses = objective(dataclasses.replace(batch, task=task.name, temperature=temperature), noise=1)
        assert torch.isfinite(losses.total)
        losses.total.backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, tuned, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_preset(name):
    run = load_config(FOLDER / f"{name}.yaml")
    assert sum(p.numel() for p in build_on_meta(run.model).parameters()) > 1e7
    check_layout(run, run.micro_batches)
    train_one_step(run)


@pytest.mark.parametrize("routing", ROUTING)
def test_routing_is_one_line(routing):
    run = load_config(FOLDER / "one_tower_b16.yaml", [f"model.experts={{preset: {routing}}}"])
    assert run.model.num_decisions > 0
    train_one_step(run)


def test_stages_of_a_recipe_share_all_shapes():
    for name in ("uni_perceiver_base", "uni_perceiver_moe_base"):
        first, second = (load_config(FOLDER / f"{name}{stage}.yaml") for stage in ("", "_stage2"))
        shapes = [
            {key: tuple(p.shape) for key, p in build_on_meta(run.model).named_parameters()} for run in (first, second)
        ]
        assert shapes[0] == shapes[1]
        assert second.init == f"runs/{name}" and second.model.image_size == 224
        assert second.model.position_scale * 224 == pytest.approx(160)
