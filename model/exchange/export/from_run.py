"""What an export says of a run besides its weights: shape, tasks, words, tables and patterns of the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import Modality
from data.config import TaskConfig
from data.shards import DatasetInfo
from data.text.tokenizer import PIECES, SPECIALS, WORDS
from data.text.vocabulary import Vocabulary
from data.text.words import INITIALS, JOINS
from data.transport import shown
from data.visual.normalise import MEAN, STD
from model.config import ModelConfig
from model.exchange.export.folder import MODEL_TYPE
from model.exchange.export.merging import ATTRIBUTES, Merging, merged_config
from parallel.checkpoints import Checkpoint, CheckpointError
from run.config import RunConfig
from run.evaluation.suite import RELATED
from run.folder import write_vocabulary

TASK_OPTIONS = ("name", "kind", "temperature", "max_text", "num_frames", "frame_sampling", "frame_stride", "template")

MODELING, PROCESSING = "modeling_sparse_generalist.py", "processing_sparse_generalist.py"


LEFT_OUT = (".lora.", "logit_biases.")
"""What is merged into other weights, and what training alone needs."""


class CheckpointTensors:
    """The weights of a checkpoint of any layout, read one at a time (merging.py: Tensors), low-rank updates merged into theirs."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig) -> None:
        self._checkpoint, self._lora = checkpoint, config.lora
        self.shapes = {
            name: checkpoint.shape(name) for name in checkpoint.names if not any(part in name for part in LEFT_OUT)
        }

    def read(self, name: str) -> Tensor:
        """Raises CheckpointError."""
        if name not in self._checkpoint.names:
            raise CheckpointError(f"{self._checkpoint.folder} has no {name}")
        weight = self._checkpoint.logical(name)
        stem = name.removesuffix(".weight").removesuffix(".linear")
        if self._lora is None or not name.endswith(".weight") or f"{stem}.lora.up" not in self._checkpoint.names:
            return weight
        up, down = (self._checkpoint.logical(f"{stem}.lora.{part}") for part in ("up", "down"))
        return weight + self._lora.alpha / self._lora.rank * torch.matmul(up, down)


def medium_of(info: DatasetInfo | None) -> str:
    """image, video or text; empty where the data set is not there."""
    return info.kind.split("_")[0] if info else ""


def settings_of(
    run: RunConfig,
    vocabulary: Vocabulary,
    infos: dict[str, DatasetInfo],
    shapes: dict[str, tuple[int, ...]],
    merging: Merging | None,
    task: str,
    step: int,
) -> dict[str, Any]:
    """config.json. task: the only one that travels; empty: all do."""
    model = run.model
    network = merged_config(model, merging) | {
        "token_rows": shapes["tower.embedding.tokens.weight"][0],
        "spe": vocabulary.spe,
        "end": vocabulary.end,
        "num_words": vocabulary.num_words,
        "word_end": run.data.word_end,
        "space_width": model.space_width,
        "attributes": {name: list(bits) for name, bits in ATTRIBUTES.items()},
        "pixels": {
            m.name.lower(): {"mean": list(MEAN[m]), "std": list(STD[m])} for m in (Modality.IMAGE, Modality.VIDEO)
        },
        "related": {kind: list(others) for kind, others in RELATED.items()},
        "merged": merging.settings(model.experts.placement) if merging else None,
    }
    tasks = [
        {name: getattr(config, name) for name in TASK_OPTIONS}
        | {
            "kind": exported_kind(config),
            "data": infos[config.name].kind if config.name in infos else "",
            "medium": medium_of(infos.get(config.name)),
            "classes": list(infos[config.name].classes) if config.name in infos else [],
            "written": config.answer == "generate",
        }
        for config in run.data.tasks
        if not task or config.name == task
    ]
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["SparseGeneralistModel"],
        "auto_map": {
            "AutoConfig": "modeling_sparse_generalist.SparseGeneralistConfig",
            "AutoModel": "modeling_sparse_generalist.SparseGeneralistModel",
            "AutoProcessor": "processing_sparse_generalist.SparseGeneralistProcessor",
        },
        "dtype": "float32",
        "network": network,
        "tasks": tasks,
        "step": step,
    }


def exported_kind(task: TaskConfig) -> str:
    """Where names are written in place of compared (`answer: generate`), they are captions to the network that is exported."""
    return "captioning" if task.kind == "classification" and task.answer == "generate" else task.kind


def _processor_settings(run: RunConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "processor_class": "SparseGeneralistProcessor",
        "auto_map": {"AutoProcessor": "processing_sparse_generalist.SparseGeneralistProcessor"},
        "image_size": run.model.image_size,
        "max_text": run.model.max_text,
        "clip_ids": list(vocabulary.clip_ids),
        "specials": list(SPECIALS),
        "words": WORDS.pattern,
        "pieces": PIECES,
        "initials": INITIALS.pattern,
        "joins": [[pattern.pattern, replacement] for pattern, replacement in JOINS],
    }


def write_network(folder: Path, settings: dict[str, Any]) -> None:
    """config.json and the code of the network."""
    _write_json(folder / "config.json", settings)
    _write_code(folder, MODELING)


def write_processor(folder: Path, run: RunConfig, vocabulary: Vocabulary) -> None:
    """Words, tables and code of the processor."""
    _write_json(folder / "processor_config.json", _processor_settings(run, vocabulary))
    merges = "\n".join(" ".join(pair) for pair in vocabulary.tokenizer.merges)
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    write_vocabulary(folder, vocabulary)
    _write_code(folder, PROCESSING)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_code(folder: Path, name: str) -> None:
    source = Path(__file__).with_name(name).read_text(encoding="utf-8")
    (folder / name).write_text(source, encoding="utf-8")


def rows_of_data(run: RunConfig, infos: dict[str, DatasetInfo]) -> list[dict[str, str]]:
    """The data sets of the tasks, for the model card; by the names of their folders, as places are those of a machine."""
    rows = []
    for task in run.data.tasks:
        splits = infos[task.name].splits.items() if task.name in infos else ()
        place = Path(shown(task.path).removesuffix("?***")).name
        told = ", ".join(f"{name} {split.samples:,}" for name, split in splits)
        rows.append({"task": task.name, "kind": task.kind, "data": place, "splits": told})
    return rows


def scale_of_pairs(run: RunConfig) -> str:
    """The logit scale of retrieval."""
    return next(
        (task.temperature for task in run.data.tasks if task.kind == "retrieval" and task.temperature), "retrieval"
    )


def text_length(run: RunConfig) -> int:
    """Tokens of the texts that pictures are compared with, at most."""
    for kind in RELATED["retrieval"]:
        for task in run.data.tasks:
            if task.kind == kind:
                return task.max_text
    return run.model.max_text
