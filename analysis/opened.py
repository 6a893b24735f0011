"""A run opened to be looked into: its network at a checkpoint, whole or cut over ranks, and its data."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from data.stream.source import Source, open_data
from data.tasks.base import Pixels
from model.moe.config import AuxiliaryConfig
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.launch import launched_world_size
from parallel.mesh import Mesh, create_mesh
from run.config import RunConfig, check_layout
from run.errors import ConfigError
from run.folder import read_run
from run.places import expanded
from run.weights.best import chosen_step


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """sources: of the tasks that were asked for, on one split; step: of the checkpoint. Ranks of `mesh.expert_data` share samples out; the
    others hold parts of one network and take the same samples."""

    folder: Path
    config: RunConfig
    objective: Objective
    sources: list[Source]
    mesh: Mesh
    step: int


def open_run(
    arguments: argparse.Namespace, split: str = "", without_auxiliary: bool = False, beside: OpenRun | None = None
) -> OpenRun:
    """Collective. arguments: of `command.parser_of`; split: by default the one that each task trains on; without_auxiliary: the network's
    loss is the task's alone; beside: a run that was opened before, whose ranks have met. Raises ConfigError, DatasetError,
    CheckpointError."""
    folder = expanded(arguments.run)
    config, vocabulary = read_run(folder, arguments.overrides)
    if without_auxiliary:
        experts = dataclasses.replace(config.model.experts, auxiliary=AuxiliaryConfig())
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, experts=experts))
    known = [task.name for task in config.data.tasks]
    for name in arguments.tasks:
        if name not in known:
            raise ConfigError(f"--tasks {name}: the tasks of {folder} are {', '.join(known)}")
    tasks = tuple(task for task in config.data.tasks if not arguments.tasks or task.name in arguments.tasks)
    if split:
        tasks = tuple(task.whole(split) for task in tasks)
    parallel = dataclasses.replace(config.parallel, tensor=arguments.tensor, expert=arguments.expert, sequence=False)
    world = launched_world_size()
    check_layout(dataclasses.replace(config, parallel=parallel, micro_batches=world), world)
    pixels = Pixels(config.model.image_size, config.model.patch)
    data = dataclasses.replace(config.data, tasks=tasks)
    sources = open_data(data, pixels, config.seed, vocabulary).sources
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    mesh = beside.mesh if beside else Mesh(device="cuda" if torch.cuda.is_available() else "cpu")
    if world > 1 and not beside:
        mesh = create_mesh(arguments.tensor, arguments.expert)
    objective = Objective(config.model, vocabulary.size, mesh, load_kernels("torch"))
    checkpoint = load_found(folder / "checkpoints", chosen_step(folder, arguments.step), objective)
    objective.to(mesh.device).eval()
    return OpenRun(folder, config, objective, sources, mesh, checkpoint.step)
