"""A run's newest weights, ready to use. The run's data need not be there."""

from __future__ import annotations

import contextlib

import torch

from data.shards import DatasetError, read_info
from data.tasks.base import Pixels
from data.transport import is_remote
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from prediction.predictor import Predictor
from run.folder import read_run
from run.places import expanded


def load(run: str, step: int | None = None, device: str = "", batch_size: int = 32) -> Predictor:
    """run: its folder; step: of a checkpoint, by default the newest; device: where it computes, by default CUDA where there is one. Raises
    ConfigError, CheckpointError."""
    folder = expanded(run)
    config, vocabulary = read_run(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    objective = Objective(config.model, vocabulary.size, Mesh(), load_kernels("torch"))
    checkpoint = load_found(folder / "checkpoints", step, objective)
    objective.to(device).eval()
    pixels = Pixels(config.model.image_size, config.model.patch)
    infos = {}
    for task in config.data.tasks:
        with contextlib.suppress(DatasetError):  # it may have been moved, or belong to others
            if not is_remote(task.path):
                infos[task.name] = read_info(task.path)
    return Predictor(objective, vocabulary, config.data, infos, pixels, checkpoint.step, device, batch_size)
