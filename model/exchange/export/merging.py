"""Experts that do not look at data, merged into the linears that a task or a modality uses (papers.md 2.3: re-parameterisation).

A router of groups decides by a *key*: the attribute bits, the modality or the task of a span of tokens. A task meets few keys (a
picture and a name; a picture, words and a vocabulary), so a bank of E experts becomes one linear for each key. Where there is one key,
as for a task of Task-MoE, the model is dense from then on.

Tensors are read one at a time from a mapping of logical names (`Tensors`). Adapters that are kept beside the weights (LoRA) are merged by
another such mapping, which adds them to what it reads.
Legend: E experts, K keys, G groups of a layout, A attribute bits, O out, I in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from data.attributes import (
    CAPTION_TEXT,
    CAPTION_VISUAL,
    NAME_TARGET,
    QUESTION_TEXT,
    TEXT_INPUT,
    VISUAL_INPUT,
    WORD_TARGET,
)
from data.batch import Modality
from model.config import ModelConfig
from model.exchange.export.errors import ExportError
from model.layout import layout_of_groups
from model.moe.router import GROUP_ROUTERS
from parallel.kernels import load_kernels

ATTRIBUTES = {
    "visual_input": VISUAL_INPUT,
    "text_input": TEXT_INPUT,
    "caption_visual": CAPTION_VISUAL,
    "caption_text": CAPTION_TEXT,
    "question_text": QUESTION_TEXT,
    "name_target": NAME_TARGET,
    "word_target": WORD_TARGET,
}
VISUAL_ATTRIBUTES = ("visual_input", "caption_visual")
OF_KIND = {
    "classification": ("visual_input", "name_target"),
    "retrieval": ("visual_input", "name_target"),
    "captioning": ("caption_visual", "caption_text", "word_target"),
    "masked_text": ("text_input", "word_target"),
    "text_classification": ("text_input", "word_target"),
    "vqa": ("caption_visual", "question_text", "word_target"),
}
"""Attribute vectors of the tokens of a kind of task."""
BANK = re.compile(r"(.+\.blocks\.\d+)\.(attention|ffn)\.(\w+)\.bank\.(weight|bias)")
ROUTER = ".router."


class Tensors(Protocol):
    """Logical tensors by name, each read when it is asked for."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor:
        """Whole, in fp32, on the CPU."""
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it is, and how it comes about."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class Merging:
    """
    of           what the experts are merged for, in words
    router       of the run
    conditions   (attributes, modality) of each key
    keys         what the router decides by, without repeats
    task         number of the task
    """

    of: str
    router: str
    conditions: tuple[tuple[str, Modality], ...]
    keys: tuple[tuple[int, ...], ...]
    task: int

    @property
    def is_dense(self) -> bool:
        return len(self.keys) == 1

    def settings(self, placement: str) -> dict[str, Any]:
        """As config.json says it; placement: of the sparse layers that there were."""
        return {"of": self.of, "router": self.router, "keys": [list(key) for key in self.keys], "placement": placement}


def merging_of_task(config: ModelConfig, name: str, kind: str, media: tuple[Modality, ...]) -> Merging:
    """For a task of the run on pictures of these media. Raises ExportError."""
    conditions = [
        (attributes, medium)
        for attributes in OF_KIND[kind]
        for medium in (media if attributes in VISUAL_ATTRIBUTES else (Modality.TEXT,))
    ]
    _check_mergeable(config, f"--task {name}")
    return _merging(config, f"task {name}", conditions, config.task_id(name))


def merging_of_modality(config: ModelConfig, modality: Modality) -> Merging:
    """For features of one modality alone. Raises ExportError."""
    about = f"--modality {modality.name.lower()}"
    _check_mergeable(config, about)
    if config.experts.router in ("task", "task_specific"):
        raise ExportError(f"{about}: router {config.experts.router} decides by tasks; choose one of them with --task")
    attributes = "name_target" if modality == Modality.TEXT else "visual_input"
    return _merging(config, f"modality {modality.name.lower()}", [(attributes, modality)], 0)


def _check_mergeable(config: ModelConfig, about: str) -> None:
    if config.num_decisions == 0:
        raise ExportError(f"{about} merges experts, and this run has none: leave it out")
    if config.experts.decides_per_token:
        raise ExportError(
            f"{about} merges experts, and router {config.experts.router} chooses them for every token: leave it out to keep them"
        )


def _merging(config: ModelConfig, of: str, conditions: list[tuple[str, Modality]], task: int) -> Merging:
    by_key: dict[tuple[int, ...], tuple[str, Modality]] = {}
    for attributes, modality in conditions:
        by_key.setdefault(key_of(config.experts.router, ATTRIBUTES[attributes], modality, task), (attributes, modality))
    return Merging(of, config.experts.router, tuple(by_key.values()), tuple(by_key), task)


def key_of(router: str, attributes: tuple[int, ...], modality: int, task: int) -> tuple[int, ...]:
    """What a router of groups decides by."""
    return {"attribute": attributes, "modality": (int(modality),)}.get(router, (task,))


def merged_config(config: ModelConfig, merging: Merging | None) -> dict[str, Any]:
    """The options of the network that is written."""
    options = dataclasses.asdict(dataclasses.replace(config, lora=None, logit_biases=()))
    if merging and merging.is_dense:
        options["experts"]["placement"] = "none"
    elif merging:
        options["experts"] |= {"router": "fixed", "num_experts": len(merging.keys), "top_k": 1, "eval_top_k": None}
    return options


def entries(tensors: Tensors, config: ModelConfig, merging: Merging | None) -> Iterator[Entry]:
    """What is written, in the order of names. Nothing is read before `make`, but for the small weights of routers."""
    gates: dict[str, Tensor] = {}
    for name, shape in sorted(tensors.shapes.items()):
        match = BANK.fullmatch(name) if merging else None
        if merging is None or (match is None and ROUTER not in name):
            yield Entry(name, shape, lambda name=name: tensors.read(name))  # type: ignore[misc]
        elif match:
            path = f"{match[1]}.{match[2]}_path.router"
            if path not in gates:
                gates[path] = gates_KE(tensors, config, path, merging)
            dense = merging.is_dense
            new = f"{match[1]}.{match[2]}.{match[3]}.{'linear' if dense else 'bank'}.{match[4]}"
            new_shape = shape[1:] if dense else (len(merging.keys), *shape[1:])

            def make(name: str = name, gate_KE: Tensor = gates[path], dense: bool = dense) -> Tensor:
                merged = torch.tensordot(gate_KE, tensors.read(name), 1)
                return merged[0] if dense else merged

            yield Entry(new, new_shape, make)


@torch.no_grad()
def gates_KE(tensors: Tensors, config: ModelConfig, path: str, merging: Merging) -> Tensor:
    """The weights of experts for each key, from the router itself."""
    names = [name for name in tensors.shapes if name.startswith(path + ".")]
    width = next((tensors.shapes[name][-1] for name in names if name.endswith("gate.weight")), config.width)
    router = GROUP_ROUTERS[config.experts.router](width, config.experts, len(config.tasks), load_kernels("torch"))
    state = {name.removeprefix(path + "."): tensors.read(name) for name in names}
    router.load_state_dict(state)
    conditions = [(ATTRIBUTES[name], int(modality)) for name, modality in merging.conditions]
    groups = list(dict.fromkeys(conditions))
    weights_CE: Tensor = router(layout_of_groups(groups, merging.task), None)[0]
    return weights_CE[[groups.index(condition) for condition in conditions]]
