"""A tiny model of any kind."""

from __future__ import annotations

from typing import Any

import torch

from data.batch import TaskBatch
from model.config import ModelConfig
from model.initialise import initialise
from model.moe.config import AuxiliaryConfig, ExpertConfig
from model.moe.presets import ROUTING
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE


def tiny(router: str = "attribute", experts: dict[str, Any] | None = None, **options: Any) -> ModelConfig:
    """`router` is a router's name, or dense: no experts, or limoe: whole networks as experts, slots with priority, auxiliary losses.

    `experts` and `options` change ExpertConfig and ModelConfig.
    """
    chosen: dict[str, Any] = {"router": router}
    if router == "limoe":
        chosen = ROUTING["limoe"] | {"auxiliary": AuxiliaryConfig(**ROUTING["limoe"]["auxiliary"])}
    if router == "dense":
        chosen = {"placement": "none"}
    shape = {"width": 16, "depth": 2, "heads": 2, "ffn": 32, "image_size": 16, "max_text": 8, "max_frames": 4}
    num_experts = len(BATCHES) if router == "task_specific" else 4
    sparse = ExpertConfig(**{**chosen, "num_experts": num_experts, **(experts or {})})
    return ModelConfig(**{**shape, "experts": sparse, "tasks": tuple(BATCHES), **options})


def make(
    config: ModelConfig | None = None, vocabulary_size: int = VOCABULARY_SIZE, mesh: Mesh | None = None, seed: int = 0
) -> Objective:
    objective = Objective(config or tiny(), vocabulary_size, mesh or Mesh(), load_kernels("torch"))
    initialise(objective, seed)
    return objective


def learned(objective: Objective, batch: TaskBatch, steps: int = 60) -> int:
    """Train on one batch; returns how many of its read-outs are right in the last step."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = objective(batch)
        losses.total.backward()
        optimizer.step()
    return int(losses.correct)
