"""An exported folder as a network of this program. Read as untrusted input: options are checked, names stay in the folder, shapes are
compared before anything is allocated, and code that lies there is never run.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.config import ModelConfig
from model.exchange.export.errors import ExportError
from model.exchange.export.merging import key_of
from model.exchange.export.writing import INDEX
from model.layout import PassLayout
from model.moe.layer import MergePath
from model.noise import Key
from model.objective import Objective
from parallel.checkpoints import UNREADABLE
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.placement import placement_of

CONFIG = "config.json"
MODEL_TYPE = "sparse_generalist"
MAX_TEXT_BYTES = 64 << 20
OPTIONS = tuple(field.name for field in dataclasses.fields(ModelConfig))


@dataclasses.dataclass(frozen=True)
class Merged:
    """What experts were merged for, and the key of each merged weight (merging.py)."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    of: str
    router: str
    keys: tuple[tuple[int, ...], ...]
    placement: str


@dataclasses.dataclass(frozen=True)
class ExportedTask:
    """A task of the run: options that questions take, and what is known of its data set."""

    name: str
    kind: str
    temperature: str
    max_text: int
    num_frames: int
    frame_sampling: str
    frame_stride: float
    template: str
    data: str
    medium: str
    classes: tuple[str, ...]
    written: bool = False
    """Names were written in place of compared (`answer: generate`). Exports of before do not say it."""

    @property
    def options(self) -> dict[str, Any]:
        """Those of TaskConfig."""
        own = dataclasses.asdict(self)
        known = {k: v for k, v in own.items() if k not in ("data", "medium", "classes", "written")}
        kind = "classification" if self.written and self.kind == "captioning" else self.kind
        return known | {"kind": kind, "answer": "generate" if self.written else "rank"}


@dataclasses.dataclass(frozen=True)
class Export:
    """An opened folder. config: of the network as this program builds it. files: of each tensor."""

    folder: Path
    config: ModelConfig
    tasks: tuple[ExportedTask, ...]
    merged: Merged | None
    word_end: bool
    vocabulary_size: int
    step: int
    files: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    def objective(self) -> Objective:
        """The network, its weights read one tensor at a time. Raises ExportError."""
        objective = Objective(self.config, self.vocabulary_size, Mesh(), load_kernels("torch"))
        if self.merged:
            for module in objective.modules():
                if isinstance(module, MergePath):
                    module.router = FixedRouter(self.merged)  # type: ignore[assignment]
        self.load(objective)
        return objective

    @torch.no_grad()
    def load(self, objective: Objective, only: tuple[str, ...] = ("*",), leave: frozenset[str] = frozenset()) -> None:
        """Weights into a network on any layout; each rank takes its part. only: patterns of names; leave: names on either side that stay
        as they are. Raises ExportError."""
        own = {name: parameter for name, parameter in objective.named_parameters() if name not in leave}
        for pattern in only:
            if not fnmatch.filter(own, pattern):
                raise ExportError(
                    f"no parameter of the model matches {pattern!r}, which is to be taken from {self.folder}"
                )
        wanted = {name: own[name] for pattern in only for name in fnmatch.filter(own, pattern)}
        given = {name: self._stored_as(name, wanted) for name in wanted}
        missing = sorted(name for name, stored in given.items() if stored not in self.shapes)
        unknown = sorted(self.shapes.keys() - set(given.values()) - leave) if only == ("*",) else []
        shapes = [
            f"{name} is {self.shapes[stored]}, the model's {placement_of(wanted[name]).shape}"
            for name, stored in given.items()
            if stored in self.shapes and not _same_shape(self.shapes[stored], placement_of(wanted[name]).shape)
        ]
        if missing or unknown or shapes:
            about = "; ".join(
                f"{title}: {', '.join(names[:5])}"
                for title, names in (("missing", missing), ("unknown", unknown), ("shapes", shapes))
                if names
            )
            raise ExportError(f"{self.folder} does not fit the model: {about}")
        if options := unlike(self.config, objective.config, wanted):
            raise ExportError(
                f"{self.folder} does not fit the model: {'; '.join(options)}: weights of the same shapes mean something else there; set "
                "these as there"
            )
        for name, parameter in wanted.items():
            placement = placement_of(parameter)
            parameter.copy_(placement.take(self._read(given[name]).view(placement.shape)))

    def _stored_as(self, name: str, own: dict[str, nn.Parameter]) -> str:
        """Weights that were merged into one are written as those of a dense model."""
        dense = name.replace(".bank.", ".linear.")
        return dense if self.merged and len(self.merged.keys) == 1 and dense in self.shapes else name

    def _read(self, name: str) -> Tensor:
        path = self.folder / self.files[name]
        try:
            with safe_open(path, framework="pt") as opened:
                tensor = opened.get_tensor(name)
        except UNREADABLE as error:
            raise ExportError(f"{path} cannot be read: {error}") from error
        return tensor.float()


class FixedRouter(nn.Module):
    """Takes the place of a router whose decisions are known: each key has the merged weights of its own number."""

    def __init__(self, merged: Merged) -> None:
        super().__init__()
        self.merged = merged

    def forward(self, layout: PassLayout, noise: Key) -> tuple[Tensor, Tensor]:
        """(weights [G, K] of all groups, one of each row; entropy of the gates, of which nothing is left: 0). Raises ExportError for a key
        that has none."""
        numbers = []
        for sequence in layout.sequences:
            for attributes, modality in sequence.tokens.groups:
                key = key_of(self.merged.router, attributes, modality, sequence.task)
                if key not in self.merged.keys:
                    raise ExportError(
                        f"the experts of this export are merged for {self.merged.of}, and it cannot do anything else: export the run "
                        "again, without --task and --modality or with others"
                    )
                numbers.append(self.merged.keys.index(key))
        device = layout.device
        weights_GK = torch.eye(len(self.merged.keys), device=device)[torch.tensor(numbers, device=device)]
        return weights_GK, weights_GK.new_zeros(len(numbers))


def unlike(theirs: ModelConfig, ours: ModelConfig, names: Iterable[str]) -> list[str]:
    """Options that differ and, without another shape, change what weights of these names mean: rows of QKV are ordered by heads, tasks
    have numbers by their order, an update has a factor."""
    names = list(names)

    def any_of(*parts: str, tower: str = "") -> bool:
        return any(name.startswith(tower) and part in name for name in names for part in parts)

    values: list[tuple[str, object, object]] = []
    if any_of(".attention.qkv.", tower="tower."):
        values.append(("model.heads", ours.heads, theirs.heads))
    if any_of(".attention.qkv.", tower="text_tower.") and ours.text_tower and theirs.text_tower:
        values.append(("model.text_tower.heads", ours.text_tower.heads, theirs.text_tower.heads))
    if any_of(".lora.") and ours.lora and theirs.lora:
        values.append(("model.lora.rank", ours.lora.rank, theirs.lora.rank))
        values.append(("model.lora.alpha", ours.lora.alpha, theirs.lora.alpha))
    if any_of(".router."):
        values.append(("model.experts.router", ours.experts.router, theirs.experts.router))
    if any_of(".router.", ".bank.", ".ffn.experts.") and ours.experts.router in ("task", "task_specific"):
        shared = [task for task in ours.tasks if task in theirs.tasks]
        if any(ours.tasks.index(task) != theirs.tasks.index(task) for task in shared):
            values.append(("the order of data.tasks", ", ".join(ours.tasks), ", ".join(theirs.tasks)))
    return [f"{option}={own}, there {other}" for option, own, other in values if own != other]


def is_export(folder: Path) -> bool:
    """Whether it looks like one."""
    try:
        return _json(folder / CONFIG).get("model_type") == MODEL_TYPE
    except (ExportError, AttributeError):
        return False


def open_export(folder: Path) -> Export:
    """Raises ExportError that names the file and what is wrong."""
    if not is_export(folder):
        raise ExportError(
            f"{folder} is no folder of `python -m model.exchange.export`: its {CONFIG} is missing or another's"
        )
    settings = _json(folder / CONFIG)
    try:
        network = dict(settings["network"])
        merged = pydantic.TypeAdapter(Merged | None).validate_python(network["merged"])
        options = {name: network[name] for name in OPTIONS if name in network}
        if merged:
            # Routers by tasks are the ones that hear of them.
            router = "task" if merged.router in ("task", "task_specific") else "modality"
            fixed = {"router": router, "num_experts": len(merged.keys), "top_k": 1, "eval_top_k": None}
            options["experts"] = dict(network["experts"]) | fixed | {"placement": merged.placement}
        config = pydantic.TypeAdapter(ModelConfig).validate_python(options)
        tasks = pydantic.TypeAdapter(tuple[ExportedTask, ...]).validate_python(settings["tasks"])
        size, step, word_end = int(network["spe"]) + 1, int(settings["step"]), bool(network["word_end"])
        files = {str(name): str(file) for name, file in _json(folder / INDEX)["weight_map"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else f"{type(error).__name__}: {error}"
        raise ExportError(f"{folder}: its {CONFIG} or {INDEX} is damaged ({said}): export the run again") from error
    return Export(folder, config, tasks, merged, word_end, size, step, files, _shapes(folder, files))


def _shapes(folder: Path, files: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Of all tensors, from the headers of the files."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ExportError(f"{folder / INDEX} names {file!r}, which leaves the folder or is no .safetensors")
        try:
            with safe_open(folder / file, framework="pt") as opened:
                there = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except UNREADABLE as error:
            raise ExportError(f"{folder / file} cannot be read: {error}") from error
        found |= {name: shape for name, shape in there.items() if files.get(name) == file}
    missing = sorted(files.keys() - found.keys())
    if missing:
        raise ExportError(f"{folder / INDEX} names {missing[0]} in {files[missing[0]]}, which does not hold it")
    return found


def _same_shape(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """One merged expert is a bank of one."""
    return stored == tuple(own) or (1, *stored) == tuple(own)


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise ExportError(f"{path} has more than {MAX_TEXT_BYTES:,} bytes: it is not of this program")
        return json.loads(text)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is no JSON: {error}") from error
