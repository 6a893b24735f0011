"""A pass asks its device for nothing, and launches few kernels. Branches of a GPU are forced on the CPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.roofline import Counter, Joined, Machine
from model.config import ModelConfig
from model.initialise import initialise
from model.objective import Objective
from parallel.kernels import Kernels, load_kernels
from parallel.mesh import Mesh
from parallel.precision import computing
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.devices import DEVICES, no_waits, take_branches_of_a_gpu
from tests.helpers.hot_path import Launches
from tests.helpers.models import make, tiny

KINDS: dict[str, tuple[str, tuple[int, int], tuple[int, int]]] = {
    # launches of a block at most, forward and backward; the same with passes compiled
    "dense": ("caption", (17, 36), (13, 22)),
    "attribute": ("caption", (41, 106), (37, 92)),
    "token": ("caption", (63, 92), (59, 78)),
    "limoe": ("retrieval", (87, 129), (49, 45)),
    "deepspeed": ("retrieval", (106, 128), (68, 44)),
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


def counted(kind: str, task: str, depth: int, kernels: Kernels, counter: Callable[[], Any]) -> tuple[int, int]:
    """-> (launches forward, backward)."""
    objective, batch = Objective(config_of(kind, depth), VOCABULARY_SIZE, Mesh(), kernels), BATCHES[task]().located()
    initialise(objective, 0)
    with counter():
        objective(batch, 1)  # tables that are made once
    with counter() as forward:
        losses = objective(batch, 2)
    with counter() as backward:
        losses.total.backward()
    return forward.launches, backward.launches


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("passes", ["one by one", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_launches_of_a_block(kind, passes):
    """compiled: a pass counts as one, as the roofline has it, which counts all else as one by one."""
    task, *most = KINDS[kind]
    kernels, counter = load_kernels("torch"), Launches
    if passes == "compiled":
        kernels = dataclasses.replace(kernels, fused=lambda function: functools.partial(Joined.apply, function))
        counter = functools.partial(Counter, Machine(*[1.0] * 8))
    first, second = (counted(kind, task, depth, kernels, counter) for depth in (1, 2))
    found = (second[0] - first[0], second[1] - first[1])
    most_forward, most_backward = most[passes == "compiled"]
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
