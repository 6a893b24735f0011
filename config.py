"""The run configuration: composes the packages' own options, checks the layout, derives DeepSpeed's dictionary.

Every number has one owner: batch size, learning rate and clipping are set here, `ds_configs/*.json` hold engine
settings alone. All errors are `ConfigError` with one line; the entry points end with exit code 2 on it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

from data.config import DataConfig
from model.config import ModelConfig
from parallel.config import OptimizerConfig, ParallelConfig
from parallel.kernels import KernelName

EXIT_CONFIG = 2
TEXT_KINDS = ("masked_text", "text_classification")
"""Kinds of tasks without pictures."""
FP32_NAMES = ("fp32", "float32", "float", "torch.float32")
"""DeepSpeed's."""


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
    init               what a fresh run's weights start from: a run folder (its newest checkpoint), or a .safetensors file that
                       `python -m model.convert to-ours` wrote
    init_only          patterns of the names of parameters to take from there; all others start fresh
    steps              optimizer steps of the whole run
    slots              micro-batches of one step over all data ranks; each rank runs slots / data ranks of them one after
                       another, so the same step is computed on any number of ranks
    log_every          steps between two lines of metrics
    save_every         steps between two checkpoints; the last step is always saved
    save_async         a save copies what the rank owns to host memory and a thread writes it while training goes on; needs
                       12 bytes of host memory for each parameter that a rank owns, until they are written
    keep_checkpoints   older checkpoints are removed
    max_skipped_steps  consecutive updates that may be skipped for non-finite gradients
    check_every        steps between two checks that copies of parameters and batches are equal on the ranks that share them;
                       0 = never
    threads            CPU threads of a rank; 0 leaves the choice to OMP_NUM_THREADS and torch
    """

    name: str
    runs: str = "runs"
    seed: int = 0
    init: str = ""
    init_only: tuple[str, ...] = ("*",)
    steps: int = 1000
    slots: int = 2
    kernels: KernelName = "torch"
    log_every: int = 10
    save_every: int = 200
    save_async: bool = False
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    check_every: int = 200
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
        if self.threads < 0 or self.seed < 0 or self.check_every < 0:
            raise ValueError("threads, seed and check_every must not be negative")
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than the run of steps={self.steps}"
            )
        if self.optimizer.tune == "prompts" and self.model.prompts is None:
            raise ValueError("optimizer.tune=prompts needs model.prompts, for instance {length: 10}")
        for task in self.data.tasks:
            temperature = task.temperature
            if temperature and temperature not in self.model.temperatures:
                raise ValueError(
                    f"task {task.name}: temperature={temperature!r} is not among model.temperatures={list(self.model.temperatures)}"
                )
            if task.max_text > self.model.max_text:
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
    engine = _read_engine(path)
    _check_engine(path, engine)
    return {
        **engine,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on the CPU too and needs no build
        "steps_per_print": 1 << 30,
    }


def _read_engine(path: Path) -> dict[str, Any]:
    """A mapping, as are those of its sections that are read here."""
    try:
        engine = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"parallel.engine={path}: {error.strerror}; there are {neighbours(path)}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(engine, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys, got {json.dumps(engine)[:50]}")
    found = {key: engine.get(key, {}) for key in ("zero_optimization", "bf16", "fp16", "data_types")}
    if isinstance(found["zero_optimization"], dict):
        found["zero_optimization.offload_optimizer"] = found["zero_optimization"].get("offload_optimizer") or {}
    for key, section in found.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {key} must be a mapping of keys, got {json.dumps(section)[:50]}")
    return engine


def _check_engine(path: Path, engine: dict[str, Any]) -> None:
    """Refuse keys that belong elsewhere, and settings that DeepSpeed or the training loop cannot do with."""
    owned = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    for key in (*owned, "optimizer", "scheduler"):
        if key in engine:
            raise ConfigError(
                f"{path}: {key} belongs to the run configuration (slots, data.tasks, optimizer): remove it there"
            )
    if "bfloat16" in engine:
        raise ConfigError(f"{path}: bfloat16 is an old name: call it bf16")
    zero = engine.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage == 3:
        raise ConfigError(
            f"{path}: ZeRO stage 3 does not work with native experts: use stage 1 or 2, or more expert ranks"
        )
    if stage not in (0, 1, 2):
        raise ConfigError(f"{path}: zero_optimization.stage={stage}: use 0, 1 or 2")
    low = [name for name in ("bf16", "fp16") if engine.get(name, {}).get("enabled")]
    if low and stage == 0:
        raise ConfigError(f"{path}: {low[0]} needs fp32 master weights, which ZeRO stage 1 and 2 keep: use stage 1")
    for section, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if engine.get(section, {}).get(key, True) is not True:
            raise ConfigError(
                f"{path}: without {section}.{key} a gradient that is not finite would be applied instead of skipped: remove it there"
            )
    accumulated = engine.get("data_types", {}).get("grad_accum_dtype")
    on_device = (zero.get("offload_optimizer") or {}).get("device", "none") == "none"
    if "bf16" in low and stage == 1 and on_device and accumulated in FP32_NAMES:
        raise ConfigError(
            f"{path}: DeepSpeed cannot add up bf16's gradients in data_types.grad_accum_dtype={accumulated} with ZeRO stage 1: "
            "use stage 2"
        )


def neighbours(path: Path) -> str:
    """The files of the same kind beside a path, for messages."""
    found = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return ", ".join(found) or f"no {path.suffix} files in {path.parent}"
