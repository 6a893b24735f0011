"""A run's weights, or an exported folder, ready to use. The run's data need not be there."""

from __future__ import annotations

from typing import Literal

import pydantic
import torch

from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo
from data.tasks.base import Pixels
from model.exchange.export.errors import ExportError
from model.exchange.export.folder import CONFIG as EXPORTED
from model.exchange.export.folder import open_export
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from prediction.predictor import Predictor
from run.errors import ConfigError
from run.folder import VOCABULARY, infos_of, is_run, read_run, read_vocabulary_file
from run.places import expanded
from run.weights.best import chosen_step


def load(run: str, step: int | Literal["best"] | None = None, device: str = "", batch_size: int = 32) -> Predictor:
    """run: its folder, or that of an export; step: of a run's checkpoint, or `best` (evaluate.keep_best), by default the newest; device:
    where it computes, by default CUDA where there is one. Raises ConfigError, CheckpointError, ExportError."""
    folder = expanded(run)
    if (folder / EXPORTED).is_file() and not is_run(folder):
        if step is not None:
            raise ConfigError(
                f"step {step} chooses among the checkpoints of a run: the export {folder} has one, leave it out"
            )
        return load_export(run, device, batch_size)
    config, vocabulary = read_run(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    objective = Objective(config.model, vocabulary.size, Mesh(), load_kernels("torch"))
    checkpoint = load_found(folder / "checkpoints", chosen_step(folder, step), objective)
    objective.to(device).eval()
    pixels = Pixels(config.model.image_size, config.model.patch)
    infos = infos_of(folder, config)
    return Predictor(objective, vocabulary, config.data, infos, pixels, checkpoint.step, device, batch_size)


def load_export(path: str, device: str = "", batch_size: int = 32) -> Predictor:
    """A folder of `python -m model.exchange.export`, whose code is not run. Raises ExportError, ConfigError."""
    folder = expanded(path)
    export = open_export(folder)
    vocabulary = read_vocabulary_file(folder / VOCABULARY)
    if vocabulary.size != export.vocabulary_size:
        raise ExportError(
            f"{folder / VOCABULARY} has {vocabulary.size} tokens, the model {export.vocabulary_size}: export the run again"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    objective = export.objective().to(device).eval()
    try:
        options = [
            pydantic.TypeAdapter(TaskConfig).validate_python(task.options | {"path": ""}) for task in export.tasks
        ]
        data = DataConfig(tasks=tuple(options), word_end=export.word_end)
        about = pydantic.TypeAdapter(DatasetInfo)
        infos = {
            task.name: about.validate_python(
                {"kind": task.data, "classes": task.classes, "token_ids": (), "splits": {}}, strict=False
            )
            for task in export.tasks
            if task.data
        }
    except ValueError as error:
        raise ExportError(
            f"{folder}: the tasks of its config.json are damaged ({str(error).splitlines()[0]})"
        ) from error
    pixels = Pixels(export.config.image_size, export.config.patch)
    return Predictor(objective, vocabulary, data, infos, pixels, export.step, device, batch_size)
