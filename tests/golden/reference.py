"""Inputs, weights and outputs of the public Uni-Perceiver code, read into our structures.

compact    in the repository (numbers/README.md); made from the full set by tests/golden/compact.py
full       every case, on machines that have it beside the checkout
"""

from __future__ import annotations

import functools
import io
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.attributes import (
    CAPTION_TEXT,
    CAPTION_VISUAL,
    NAME_TARGET,
    TEXT_INPUT,
    VISUAL_INPUT,
    WORD_TARGET,
    Attributes,
)
from data.batch import Modality, Segment, Sequences, TaskBatch, Visibility
from model.config import ModelConfig, PromptConfig
from model.exchange.public import TEMPERATURES, load_logical, to_ours
from model.initialise import initialise
from model.moe.config import ExpertConfig
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.places import SHARED

FULL, COMPACT = SHARED / "golden", Path(__file__).parent / "numbers" / "compact.npz.xz"
HEADS, PATCH, END, SPE, VOCABULARY_SIZE = 4, 16, 49407, 49410, 49411
Arrays = dict[str, np.ndarray]


def cases(*names: str) -> list[Any]:
    """`SET/NAME` of these cases: those in the compact set, and behind the markers `slow` and `shared` all of the full set."""
    marks = (pytest.mark.slow, pytest.mark.shared)
    compact = [f"compact/{name}" for name in names if name in manifest("compact")["cases"]]
    return [*compact, *(pytest.param(f"full/{name}", marks=marks) for name in names)]


@functools.cache
def manifest(numbers: str) -> dict[str, Any]:
    if numbers == "full":
        return json.loads((FULL / "manifest.json").read_text())
    return json.loads(bytes(_compact()["manifest"]))


def described(case: str) -> dict[str, Any]:
    numbers, name = case.split("/")
    return manifest(numbers)["cases"][name]


@functools.cache
def arrays(case: str) -> Arrays:
    """Of a case, or of another file of the set."""
    numbers, name = case.split("/")
    if numbers == "compact":
        return {key.split("|")[1]: value for key, value in _compact().items() if key.startswith(f"{name}|")}
    with np.load(FULL / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@functools.cache
def _compact() -> Arrays:
    with np.load(io.BytesIO(lzma.decompress(COMPACT.read_bytes())), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    value = torch.from_numpy(array)
    return value.float() if value.is_floating_point() else value.long()


@functools.cache
def public_state(model: str, extra: str = "") -> dict[str, Tensor]:
    """All parameters by public name, fp32. model: for instance compact/moe; there, experts that no case uses are zero."""
    numbers, kind = model.split("/")
    table = tensor(arrays(f"{numbers}/token_embedding")["token_embed.embeddings.weight"]).float() / 8
    state = {"token_embed.embeddings.weight": table}
    for name in (f"{kind}_state", *([extra] if extra else [])):
        state |= {key: tensor(value) for key, value in arrays(f"{numbers}/{name}").items()}
    if kind == "moe":
        state |= {name: torch.zeros(shape) for name, shape in manifest(numbers).get("zeros", {}).items()}
    return state


def model_config(kind: str, prompts: PromptConfig | None = None, head_classes: int = 0) -> ModelConfig:
    experts = ExpertConfig(num_experts=8, top_k=2, placement="odd" if kind == "moe" else "none")
    return ModelConfig(
        width=64,
        depth=4,
        heads=HEADS,
        ffn=128,
        image_size=64,
        patch=PATCH,
        max_frames=8,
        max_text=128,
        layer_scale=1e-3,
        positions="learned",  # the stored table is the sine-cosine one rounded to float16
        experts=experts,
        prompts=prompts,
        head_classes=head_classes,
        temperatures=tuple(TEMPERATURES.values()),
    )


def load(model: str, case: str = "") -> Objective:
    """Our model with the public weights; `case` is that of a prompt-tuned one."""
    prompts, classes, extra = None, 0, ""
    if case:
        prompt = described(case)["prompt"]
        target = 0 if prompt["share"] else prompt["target_length"]
        prompts, classes = PromptConfig(length=prompt["length"], target_length=target), prompt.get("fc_out") or 0
        extra = described(case)["extra_state"].removesuffix(".npz")
    config = model_config(model.split("/")[1], prompts, classes)
    objective = Objective(config, VOCABULARY_SIZE, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    load_logical(objective, to_ours(public_state(model, extra), heads=HEADS, learned_positions=True))
    return objective.eval()


# -- batches -----------------------------------------------------------------------------------------------------------


def visual(pixels: np.ndarray, attributes: Attributes) -> Segment:
    """[B, 3, H, W] images or [B, T, 3, H, W] clips as patches, frames outer, row by row."""
    frames = tensor(pixels) if pixels.ndim == 5 else tensor(pixels)[:, None]
    batch, count, _, height, width = frames.shape
    rows, columns = height // PATCH, width // PATCH
    cut = frames.unflatten(3, (rows, PATCH)).unflatten(5, (columns, PATCH))  # B T C r y c x
    values = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, count * rows * columns, -1)
    grid = torch.cartesian_prod(torch.arange(count), torch.arange(rows), torch.arange(columns))
    return Segment(
        modality=Modality.IMAGE if pixels.ndim == 4 else Modality.VIDEO,
        values=values,
        positions=grid.expand(batch, *grid.shape),
        valid_BL=torch.ones(batch, len(grid), dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )


def text(ids: Tensor, lengths: Tensor, attributes: Attributes, visibility=Visibility.PREFIX) -> Segment:
    return Segment(
        modality=Modality.TEXT,
        values=ids,
        positions=torch.arange(ids.shape[1]).expand(ids.shape),
        valid_BL=torch.arange(ids.shape[1])[None, :] < lengths[:, None],
        visibility=visibility,
        attributes=attributes,
    )


def words(ids: Tensor) -> Sequences:
    """Vocabulary entries: [id, end-of-text]."""
    pairs = torch.stack([ids, torch.full_like(ids, END)], dim=1)
    return Sequences(segments=(text(pairs, torch.full((len(ids),), 2), WORD_TARGET),))


def batch_of(case: str) -> TaskBatch:
    about, stored = described(case), arrays(case)
    task = case.split("_", 1)[1].removeprefix("prompt_")
    if case.endswith("prompt_cls"):
        task = "image_cls"

    def get(name: str) -> Tensor:
        return tensor(stored[f"in/{name}"])

    def names() -> Sequences:
        attributes = WORD_TARGET if task == "text_cls" else NAME_TARGET
        return Sequences(segments=(text(get("class_ids"), get("class_lengths"), attributes),))

    pixels = stored.get("in/images", stored.get("in/video"))
    symmetric = task == "retrieval"
    if task in ("image_cls", "video_cls", "retrieval"):
        segments: tuple[Segment, ...] = (visual(pixels, VISUAL_INPUT),)
        rows = torch.arange(len(pixels))
        read = torch.stack([rows, torch.zeros_like(rows)], dim=1)
        candidates = names() if task != "retrieval" else None
        labels = rows if symmetric else get("labels")
        if candidates is None:
            candidates = Sequences(segments=(text(get("text_ids"), get("text_lengths"), NAME_TARGET),))
    elif task == "text_cls":
        segments = (text(get("text_ids"), get("text_lengths"), TEXT_INPUT),)
        index = get("spe_index")
        read, labels, candidates = torch.stack([torch.arange(len(index)), 1 + index], dim=1), get("labels"), names()
    elif task == "mlm":
        ids, targets = get("text_ids"), get("target_index")
        lengths = (ids != 0).sum(dim=1)
        segments = (text(ids, lengths, TEXT_INPUT),)
        chosen = (targets >= 0).nonzero()
        read, labels = chosen + torch.tensor([0, 1]), targets[targets >= 0]
        candidates = words(get("vocab_ids"))
    else:
        ids, lengths, targets = get("caption_ids"), get("caption_lengths"), get("target_index")
        queries = torch.where(torch.arange(ids.shape[1])[None, :] < lengths[:, None], SPE, 0)
        segments = (
            visual(pixels, CAPTION_VISUAL),
            text(ids, lengths, CAPTION_TEXT, Visibility.CAUSAL),
            text(queries, lengths, CAPTION_TEXT, Visibility.READOUT),
        )
        first = 1 + segments[0].valid_BL.shape[1] + ids.shape[1]
        chosen = (targets >= 0).nonzero()
        read, labels = chosen + torch.tensor([0, first]), targets[targets >= 0]
        candidates = words(get("vocab_ids"))
    return TaskBatch(
        task=task,
        inputs=Sequences(segments=segments),
        read_Q2=read,
        candidates=candidates,
        labels_Q=labels,
        temperature=TEMPERATURES[about["logit_scale"].removeprefix("logit_scale_")],
        symmetric=symmetric,
        weight=about["loss_weight"],
        label_smoothing=about["label_smoothing"],
    )
