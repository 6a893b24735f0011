"""The run configuration: composes the packages' own options, reads strict YAML with key=value overrides, derives DeepSpeed's.

Every number has one owner: batch size, learning rate and clipping are set here, `ds_configs/*.json` hold engine
settings alone. All errors are `ConfigError` with one line; the entry points end with exit code 2 on it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from data.config import DataConfig
from model.config import ModelConfig
from parallel.config import OptimizerConfig, ParallelConfig
from parallel.kernels import KernelName

EXIT_CONFIG = 2
TEXT_KINDS = ("masked_text",)
"""Kinds of tasks without pictures."""


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line with the key, the value and the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the progress bar and metrics.jsonl.

    wandb     offline: files below the run folder, to be sent later with `wandb sync`; online; disabled
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "sparse-generalists"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about one run.

    name               the run's folder is <runs>/<name>; repeating a command resumes there
    steps              optimizer steps of the whole run
    slots              micro-batches of one step over all data ranks; each rank runs slots / data ranks of them one after
                       another, so the same step is computed on any number of ranks
    log_every          steps between two lines of metrics
    save_every         steps between two checkpoints; the last step is always saved
    keep_checkpoints   older checkpoints are removed
    max_skipped_steps  consecutive updates that may be skipped for non-finite gradients
    threads            CPU threads of a rank; 0 leaves the choice to OMP_NUM_THREADS and torch
    """

    name: str
    runs: str = "runs"
    seed: int = 0
    steps: int = 1000
    slots: int = 2
    kernels: KernelName = "torch"
    log_every: int = 10
    save_every: int = 200
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    threads: int = 0
    data: DataConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name={self.name!r}: letters, digits, dot, dash and underscore only, it names a folder")
        for key in ("steps", "slots", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        if self.threads < 0 or self.seed < 0:
            raise ValueError("threads and seed must not be negative")
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than the run of steps={self.steps}"
            )
        for task in self.data.tasks:
            temperature = task.temperature
            if temperature and temperature not in self.model.temperatures:
                raise ValueError(
                    f"task {task.name}: temperature={temperature!r} is not among model.temperatures={list(self.model.temperatures)}"
                )
            text_task = task.kind in ("masked_text", "captioning", "retrieval", "classification")
            if text_task and task.max_text > self.model.max_text:
                raise ValueError(
                    f"task {task.name}: max_text={task.max_text} is above model.max_text={self.model.max_text}"
                )
            if task.num_frames > self.model.max_frames:
                raise ValueError(
                    f"task {task.name}: num_frames={task.num_frames} is above model.max_frames={self.model.max_frames}"
                )

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name


def check_layout(config: RunConfig, world_size: int) -> None:
    """Refuse an impossible layout before any process group or data is touched."""
    parallel, model = config.parallel, config.model
    tensor, expert = parallel.tensor, parallel.expert
    if world_size % tensor:
        raise ConfigError(f"parallel.tensor={tensor} does not divide the {world_size} ranks that were started")
    data_ranks = world_size // tensor
    if data_ranks % expert:
        raise ConfigError(
            f"parallel.expert={expert} does not divide the {data_ranks} data ranks (world {world_size} / tensor {tensor}); "
            f"possible: {[n for n in range(1, data_ranks + 1) if data_ranks % n == 0]}"
        )
    if config.slots % data_ranks:
        raise ConfigError(
            f"slots={config.slots} micro-batches a step do not divide among {data_ranks} data ranks: use a multiple"
        )
    sparse = model.num_decisions > 0
    if expert > 1 and not sparse:
        raise ConfigError(
            f"parallel.expert={expert} needs experts, but model.experts.placement={model.experts.placement} has none"
        )
    if sparse and model.experts.num_experts % expert:
        raise ConfigError(
            f"model.experts.num_experts={model.experts.num_experts} does not divide by parallel.expert={expert}"
        )
    for name in ("heads", "ffn"):
        for key, shape in (("model", model), ("model.text_tower", model.text_tower)):
            if shape is not None and getattr(shape, name) % tensor:
                raise ConfigError(f"{key}.{name}={getattr(shape, name)} does not divide by parallel.tensor={tensor}")
    texts = [task.name for task in config.data.tasks if task.kind in TEXT_KINDS]
    if model.text_tower and texts and tensor * expert > 1:
        raise ConfigError(
            f"task {texts[0]} is text alone: with model.text_tower it leaves the other tower out, and ranks with other tasks "
            "would wait for it; use parallel.tensor=1 and parallel.expert=1"
        )
    if tensor > 64 or 64 % tensor:
        raise ConfigError(
            f"parallel.tensor={tensor} does not divide the token table's 64-row blocks: use a power of two up to 64"
        )


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Engine settings from `parallel.engine`, completed with what this configuration owns.

    Gradients are accumulated and scaled by the loop, so DeepSpeed sees one micro-batch a step.
    """
    path = Path(config.parallel.engine)
    try:
        engine = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"parallel.engine={path}: {error.strerror}; there are {_neighbours(path)}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno}: not JSON: {error.msg}") from error
    owned = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    for key in (*owned, "optimizer", "scheduler"):
        if key in engine:
            raise ConfigError(
                f"{path}: {key} belongs to the run configuration (slots, data.tasks, optimizer): remove it there"
            )
    stage = engine.get("zero_optimization", {}).get("stage", 0)
    if stage == 3:
        raise ConfigError(
            f"{path}: ZeRO stage 3 does not work with native experts: use stage 1 or 2, or more expert ranks"
        )
    if stage not in (1, 2):
        raise ConfigError(
            f"{path}: zero_optimization.stage={stage}: use 1 or 2 (stage 0 clips by a wrong norm with experts)"
        )
    return {
        **engine,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }


# -- reading ---------------------------------------------------------------------------------------------------------


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """YAML file plus `a.b=value` overrides; list elements are numbered or named (`data.tasks.shapes.batch_size=8`)."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; there are {_neighbours(path)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys, got {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Strict: no unknown key, no wrong type, no conversion but int to float."""
    unknown = next(_unknown_keys(RunConfig, raw, ""), None)
    if unknown:
        raise ConfigError(f"{origin}: {unknown}")
    names = [task.get("name") for task in raw["data"]["tasks"]] if _has_tasks(raw) else []
    raw = {**raw, "model": {"tasks": names, **(raw.get("model") or {})}}
    try:
        return pydantic.TypeAdapter(RunConfig).validate_json(json.dumps(raw), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
        raise ConfigError(f"{origin}: {where + ': ' if where else ''}{message}{given}") from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config))), sort_keys=False)


def _has_tasks(raw: dict[str, Any]) -> bool:
    tasks = raw["data"].get("tasks") if isinstance(raw.get("data"), dict) else None
    return isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: PyYAML alone reads 1e-3 as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _unknown_keys(kind: Any, raw: Any, prefix: str) -> Iterator[str]:
    """One message for every key that its options class does not have."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(kind):
            yield from _unknown_keys(option, raw, prefix)
    elif origin is tuple and isinstance(raw, list):
        for index, item in enumerate(raw):
            yield from _unknown_keys(typing.get_args(kind)[0], item, f"{prefix}{index}.")
    elif dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        hints = typing.get_type_hints(kind)
        for key, value in raw.items():
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
                yield f"unknown key {prefix}{key}; did you mean {prefix}{near[0]}?"
            else:
                yield from _unknown_keys(hints[key], value, f"{prefix}{key}.")


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {override!r} must read key=value, for instance model.depth=6")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        raise ConfigError(f"override {override!r} must name a key of a list element, for instance {key}.batch_size")
    node[last] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        names = [item.get("name") for item in node if isinstance(item, dict)]
        if part in names:
            return node[names.index(part)]
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"override {override!r}: no list element {part!r}; there are {names}")
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: {part!r} lies below a value, not below a group of keys")
    child = node.setdefault(part, {})
    if child is None:
        child = node[part] = {}
    return child


def _neighbours(path: Path) -> str:
    found = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return ", ".join(found) or f"no {path.suffix} files in {path.parent}"
