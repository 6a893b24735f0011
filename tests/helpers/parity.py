"""Train a tiny model for a few steps on any layout and report everything by global name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.batch import Scope, TaskBatch
from parallel.checkpoints import Fragment
from parallel.precision import PrecisionName
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE, joined, pairs, sharing
from tests.helpers.models import tiny
from tests.helpers.places import ROOT


@dataclasses.dataclass(frozen=True)
class ParityRun:
    """
    tasks          the task of each micro-batch; with fewer than tasks, the steps take them in turn
    sgd            plain gradient steps, which hide no wrong factor as Adam would
    adam_eps       Adam divides by the root of tiny second moments in its first steps, which magnifies rounding without
                   bound; a large epsilon bounds it, so that equality can be asked for
    broken_step    the first micro-batch's loss is NaN there
    forced_expert  the router sends everything to this one
    pairwise       the sigmoid loss, of "global" and "joined"
    scope          "": each micro-batch has its own candidates. "sharded": but for pairs, candidates are sets that the data ranks
                   of a micro-step encode together. "global": pairs of all micro-batches are compared, "joined": the same
                   pairs in one; both without noise, which differs from one to the next
    model          more options of the model; experts: of its experts
    """

    tensor: int = 1
    sequence: bool = False
    expert: int = 1
    heads: int = 2
    router: str = "attribute"
    engine: str = "zero1"
    precision: PrecisionName = "fp32"
    tasks: tuple[str, ...] = ("caption", "text")
    micro_batches: int = 2
    lr: float = 1e-2
    steps: int = 3
    sgd: bool = False
    adam_eps: float = 1e-6
    clip: float = 0.5
    save_to: str = ""
    save_at: int = 0
    save_async: bool = False
    broken_step: int = -1
    forced_expert: int = -1
    frozen: tuple[str, ...] = ()
    scope: str = ""
    model: tuple[tuple[str, Any], ...] = ()
    experts: tuple[tuple[str, Any], ...] = ()
    pairwise: bool = False
    ema: float = 0.0

    def task(self, step: int, number: int) -> str:
        return self.tasks[(step * self.micro_batches + number) % len(self.tasks)]

    def batch(self, step: int, number: int, ranks: int) -> TaskBatch:
        """ranks: over data."""
        task = self.task(step, number)
        seeds = (10 * step, 10 * step + 1)
        if self.scope == "sharded":
            first = number // ranks * ranks
            beside = tuple(self.task(step, other) for other in range(first, first + ranks))
            return sharing(task, 10 * step + number, beside)
        if self.scope == "global":
            return dataclasses.replace(pairs(seeds[number], number), scope=Scope.GLOBAL, pairwise=self.pairwise)
        if self.scope == "joined":
            both = joined(*(pairs(seed, place) for place, seed in enumerate(seeds)))
            return dataclasses.replace(both, pairwise=self.pairwise)
        return BATCHES[task](step)


def run_job(rank: int, job: ParityRun) -> dict[str, Any]:
    """Losses by micro-batch, norms, this rank's fragments (name, placement, start, values by kind), of the
    gradients of every step and of weights and moments after the last one, and the loss scale."""
    import logging

    from model.initialise import initialise
    from model.noise import keys_of
    from model.objective import Objective
    from model.tuning.trained import freeze
    from parallel.checkpoints import Saver, newest
    from parallel.config import OptimizerConfig
    from parallel.engine import Engine
    from parallel.kernels import Kernels, load_kernels
    from parallel.mesh import create_mesh

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    mesh = create_mesh(job.tensor, job.expert, sequence=job.sequence)
    kernels = load_kernels("torch")
    if job.sgd:
        kernels = Kernels(kernels.layer_norm, lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr))
    experts = dict(job.experts) | ({"top_k": 1} if job.forced_expert >= 0 else {})
    # Logits at the usual scale of 14 magnify the rounding of gradients that cancel, by more or less on different processors.
    options = {"heads": job.heads, "initial_scale": 1.0, **dict(job.model)}
    objective = Objective(tiny(job.router, experts, **options), VOCABULARY_SIZE, mesh, kernels)
    initialise(objective, 0)
    freeze(objective, job.frozen)
    if job.forced_expert >= 0:
        _force(objective, job.forced_expert)
    engine_config = json.loads((ROOT / f"ds_configs/{job.engine}.json").read_text()) | {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
    engine = Engine(
        objective,
        mesh,
        OptimizerConfig(lr=job.lr, clip=job.clip, eps=job.adam_eps, ema=job.ema),
        engine_config,
        kernels,
        job.precision,
    )

    start = 0
    if job.save_to:
        checkpoint, _ = newest(Path(job.save_to))
        if checkpoint is not None:
            start = checkpoint.step
            engine.restore(checkpoint)
    saver = Saver(Path(job.save_to), background=job.save_async)
    losses: dict[tuple[int, int], float] = {}
    norms, gradients = [], []
    own = range(mesh.data.rank, job.micro_batches, mesh.data.size)
    for step in range(start, job.steps):
        with engine.accumulation():
            for number in own:
                noise = {"": 100 * step + number, "sharded": keys_of(0, step, number)}.get(job.scope)
                result = engine(job.batch(step, number, mesh.data.size), noise)
                broken = step == job.broken_step and number == 0
                engine.backward(result.total / len(own) * (torch.nan if broken else 1.0))
                losses[step, number] = result.total.item()
        gradients.append(_copied(engine.gradients()))
        norms.append(dataclasses.astuple(engine.step(job.lr).norms))
        if job.save_to and step + 1 == job.save_at:
            state = {
                "optimizer_step": engine.optimizer_step,
                "loss_scale": engine.loss_scale,
                "good_updates": engine.good_updates,
            }
            saver.save(step + 1, engine.fragments(), state)
    saver.publish()
    return {
        "losses": losses,
        "norms": norms,
        "gradients": gradients,
        "fragments": _copied(engine.fragments()),
        "loss_scale": engine.loss_scale,
        "good_updates": engine.good_updates,
        "averaged": _averaged(engine) if job.ema else {},
    }


def _averaged(engine: Any) -> dict[str, np.ndarray]:
    """This rank's parameters while averages are in their places."""
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    with engine.averaged():
        inside = {name: p.detach().numpy().copy() for name, p in engine.module.named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in engine.module.named_parameters())
    return inside


@torch.no_grad()
def _force(objective: torch.nn.Module, expert: int) -> None:
    """Gates that want one expert whatever they see: norms give nearly ones, and the gate's row asks for ones."""
    for name, parameter in objective.named_parameters():
        if name.endswith(".router.gate.weight"):
            parameter.fill_(-1.0)
            parameter[expert] = 1.0
        elif name.endswith((".router.norm.weight", ".attention_norm.weight", ".ffn_norm.weight")):
            parameter.fill_(0.05)
        elif name.endswith((".router.norm.bias", ".attention_norm.bias", ".ffn_norm.bias")):
            parameter.fill_(1.0)


def _copied(fragments: Iterator[Fragment]) -> list[tuple]:
    return [
        (f.name, f.placement, f.start, {kind: t.float().numpy().copy() for kind, t in f.tensors.items()})
        for f in fragments
    ]


def logical_weights(results: list[dict[str, Any]], kind: str = "weight") -> dict[str, np.ndarray]:
    """Every rank's fragments after the last step, put together to whole tensors."""
    return _logical([result["fragments"] for result in results], kind)


def logical_gradients(results: list[dict[str, Any]], step: int) -> dict[str, np.ndarray]:
    """The averaged gradients of one step, put together to whole tensors."""
    return _logical([result["gradients"][step] for result in results], "gradient")


def _logical(ranks: list[list[tuple]], kind: str) -> dict[str, np.ndarray]:
    """Whole tensors by name; copies must agree bit by bit."""
    locals_: dict[str, dict[Any, torch.Tensor]] = {}
    for fragments in ranks:
        for name, placement, start, tensors in fragments:
            part = locals_.setdefault(name, {}).setdefault(
                placement, torch.full((int(np.prod(placement.local_shape)),), torch.nan)
            )
            new, old = torch.from_numpy(tensors[kind]), part[start : start + len(tensors[kind])]
            assert bool((old.isnan() | (old == new)).all()), f"copies of {name} differ"
            old.copy_(new)
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
