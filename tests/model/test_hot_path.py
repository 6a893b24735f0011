"""A pass asks its device for nothing, and launches few kernels. Branches of a GPU are forced on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.devices import DEVICES, no_waits, take_branches_of_a_gpu
from tests.helpers.hot_path import Launches
from tests.helpers.models import make, tiny

KINDS: dict[str, tuple[str, int, int]] = {
    # of a block, at most: launches forward, launches backward
    "dense": ("caption", 20, 36),
    "attribute": ("caption", 46, 106),
    "token": ("caption", 180, 124),
    "limoe": ("retrieval", 178, 146),
    "deepspeed": ("retrieval", 192, 146),
}


def sparse(kind: str, experts: dict[str, Any] | None = None, **options: Any) -> ModelConfig:
    """deepspeed: as limoe, its tokens sent by DeepSpeed's layer."""
    if kind == "deepspeed":
        return tiny("limoe", {"backend": "deepspeed", **(experts or {})}, **options)
    return tiny(kind, experts, **options)


def config_of(kind: str, depth: int) -> ModelConfig:
    options = {"layer_scale": 1e-3, "drop_path": 0.1} if kind not in ("limoe", "deepspeed") else {}
    experts = None if kind == "dense" else {"placement": "all"}
    return sparse(kind, experts, depth=depth, **options)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    take_branches_of_a_gpu(monkeypatch)


def counted(kind: str, task: str, depth: int) -> tuple[int, int]:
    """-> (launches forward, backward)."""
    objective, batch = make(config_of(kind, depth)), BATCHES[task]().located()
    objective(batch, 1)  # tables that are made once
    with Launches() as forward:
        losses = objective(batch, 2)
    with Launches() as backward:
        losses.total.backward()
    return forward.total, backward.total


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kind", KINDS)
def test_launches_of_a_block(kind):
    task, most_forward, most_backward = KINDS[kind]
    first, second = counted(kind, task, 1), counted(kind, task, 2)
    found = (second[0] - first[0], second[1] - first[1])
    assert found[0] <= most_forward and found[1] <= most_backward, found


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "block"])
@pytest.mark.parametrize("task", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_nothing_waits_for_a_device(kind, task, checkpointing, device):
    """Forward, backward and update; on a GPU in bf16, as it has grouped products for nothing else."""
    config = sparse(kind, activation_checkpointing=checkpointing, drop_path=0.1)
    objective, batch = make(config, mesh=Mesh(device=device)).to(device), BATCHES[task]().located().to(device)
    optimizer = load_kernels("torch").adam(objective.parameters(), lr=1e-3)

    def step(noise: int) -> None:
        optimizer.zero_grad()
        with computing(device, torch.bfloat16 if device == "cuda" else torch.float32):
            losses = objective(batch, noise)
        losses.total.backward()
        optimizer.step()

    step(1)  # tables and moments that are made once
    with no_waits(device):
        step(2)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("task", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_runs_where_there_are_no_values(kind, task, monkeypatch):
    """On the meta device, which has shapes alone; in bf16, as it has grouped products for nothing else."""
    for place in ("model.moe.experts", "model.moe.layer") if kind in ("token", "limoe", "deepspeed") else ():
        monkeypatch.setattr(f"{place}.lowered", lambda x: x.bfloat16())
    with torch.device("meta"):
        objective = Objective(sparse(kind, drop_path=0.1), VOCABULARY_SIZE, Mesh(device="meta"), load_kernels("torch"))
    losses = objective(BATCHES[task]().located().to("meta"), 1)
    losses.total.backward()
    assert all(p.grad is None or p.grad.device.type == "meta" for p in objective.parameters())
