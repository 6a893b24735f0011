"""Train a tiny model for a few steps on any layout and report everything by global name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.models import tiny

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Job:
    """tasks: the task of each slot; sgd: plain gradient steps, which hide no wrong factor as Adam would;
    broken_step: the first slot's loss is NaN there."""

    tensor: int = 1
    expert: int = 1
    heads: int = 2
    router: str = "attribute"
    stage: int = 1
    tasks: tuple[str, ...] = ("caption", "text")
    steps: int = 3
    sgd: bool = False
    clip: float = 0.5
    save_to: str = ""
    save_at: int = 0
    broken_step: int = -1
    frozen: tuple[str, ...] = ()


def run_job(rank: int, job: Job) -> dict[str, Any]:
    """Losses by slot, norms, and this rank's fragments {name: (cuts, start, weight values)} after the last step."""
    import logging

    from model.initialise import initialise
    from model.objective import Objective
    from model.tuning import freeze
    from parallel.checkpoint import newest, restore, save
    from parallel.config import OptimizerConfig
    from parallel.engine import Engine
    from parallel.kernels import Kernels, load_kernels
    from parallel.mesh import create_mesh

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    mesh = create_mesh(job.tensor, job.expert)
    kernels = load_kernels("torch")
    if job.sgd:
        kernels = Kernels(kernels.layer_norm, lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr))
    objective = Objective(tiny(job.router, heads=job.heads), VOCABULARY_SIZE, mesh, kernels)
    initialise(objective, 0)
    freeze(objective, job.frozen)
    engine_config = json.loads((ROOT / f"ds_configs/zero{job.stage}.json").read_text()) | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": job.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    engine = Engine(objective, mesh, OptimizerConfig(lr=1e-2, clip=job.clip), engine_config, kernels)

    start = 0
    if job.save_to:
        checkpoint, _ = newest(Path(job.save_to))
        if checkpoint is not None:
            start = checkpoint.step
            engine.prepare_restore(checkpoint.state["optimizer_step"])
            restore(checkpoint, engine.fragments())
            engine.finish_restore()
    losses: dict[tuple[int, int], float] = {}
    norms = []
    slots = range(mesh.data.rank, len(job.tasks), mesh.data.size)
    for step in range(start, job.steps):
        with engine.accumulation():
            for slot in slots:
                result = engine(BATCHES[job.tasks[slot]](step), 100 * step + slot)
                broken = step == job.broken_step and slot == 0
                engine.backward(result.total / len(slots) * (torch.nan if broken else 1.0))
                losses[step, slot] = result.total.item()
        norms.append(engine.step(1e-2).grad_norm)
        if job.save_to and step + 1 == job.save_at:
            save(Path(job.save_to), step + 1, engine.fragments(), {"optimizer_step": engine.optimizer_step})
    fragments = [
        (f.name, f.placement, f.start, {kind: t.numpy().copy() for kind, t in f.tensors.items()})
        for f in engine.fragments()
    ]
    return {"losses": losses, "norms": norms, "fragments": fragments}


def logical_weights(results: list[dict[str, Any]], kind: str = "weight") -> dict[str, np.ndarray]:
    """Every rank's fragments put together to whole tensors; replicas must agree."""
    locals_: dict[str, dict[Any, torch.Tensor]] = {}
    for result in results:
        for name, placement, start, tensors in result["fragments"]:
            part = locals_.setdefault(name, {}).setdefault(
                placement, torch.full((int(np.prod(placement.local_shape)),), torch.nan)
            )
            part[start : start + len(tensors[kind])] = torch.from_numpy(tensors[kind])
    whole = {}
    for name, parts in locals_.items():
        logical = torch.full(next(iter(parts)).shape, torch.nan)
        for placement, part in parts.items():
            placement.take(logical).copy_(part.view(placement.local_shape))
        assert not logical.isnan().any(), f"{name} is not covered"
        whole[name] = logical.numpy()
    return whole


def merged_losses(results: list[dict[str, Any]]) -> dict[tuple[int, int], float]:
    merged: dict[tuple[int, int], float] = {}
    for result in results:
        merged |= result["losses"]
    return merged
