"""The run configuration: composes the packages' own options, checks the layout, derives DeepSpeed's dictionary.

Every number has one owner: batch size, learning rate and clipping are set here, `ds_configs/*.json` hold engine
settings alone. All errors are `ConfigError` with one line; the entry points end with exit code 2 on it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from data.config import DataConfig
from data.tasks import check_tasks, kind_of
from data.tasks.base import WordTask
from data.tasks.related import trained_temperature
from evaluation.config import EvaluateConfig
from model.config import ModelConfig
from model.tuning.trained import check_tune
from parallel.config import OptimizerConfig, ParallelConfig
from parallel.kernels import AttentionName, CompileName, KernelName
from run.errors import ConfigError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
RUN_NAME_RULE = "letters, digits, dot, dash and underscore only, 200 at most: it names a folder"
MAX_THREADS = 1024
MAX_PROFILED = 50
"""Steps; a trace has thousands of events of each, and viewers end at some gigabytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides the progress bar and metrics.jsonl.

    wandb        offline: files below the run folder, to be sent later with `wandb sync`; online; disabled
    project      of wandb, and the label `job` in Prometheus
    tags         of wandb, to find runs by
    group        of wandb, for runs that belong together
    tensorboard  files for TensorBoard in the run's folder; needs the extra `tensorboard`
    prometheus   a .prom file that is replaced at each record, for the textfile collector of Prometheus' node exporter; "" = none; needs
                 the extra `prometheus`
    alarm_steps  routing that has collapsed, and experts that nobody chooses, are told when they have been so for so many steps; 0 = never
    peak         what model FLOPs utilisation is a share of: known, the figure of the device's data sheet; measured, a product of matrices
                 that each rank times when it starts; or TFLOP/s of one rank
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "sparse-generalists"
    tags: tuple[str, ...] = ()
    group: str = ""
    tensorboard: bool = False
    prometheus: str = ""
    alarm_steps: int = 200
    peak: float | Literal["known", "measured"] = "known"

    def __post_init__(self) -> None:
        if wrong := [tag for tag in self.tags if not 1 <= len(tag) <= 64]:
            raise ValueError(f"tags: {wrong[0]!r} must have 1 to 64 characters")
        if self.alarm_steps < 0:
            raise ValueError(f"alarm_steps={self.alarm_steps}: must not be negative")
        if not isinstance(self.peak, str) and self.peak <= 0:
            raise ValueError(f"peak={self.peak}: TFLOP/s of a rank must be positive; or known, or measured")
        if self.prometheus and not self.prometheus.endswith(".prom"):
            raise ValueError(f"prometheus={self.prometheus!r} must end in .prom: node exporter reads no other files")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A close look at some steps by torch.profiler: a trace for Perfetto, and a table of operators and collectives, of each rank. It makes
    these steps slower, and writing takes some seconds.

    steps  the first and the last, counted as the progress line counts; 50 at most
    """

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != 2 or not 1 <= self.steps[0] <= self.steps[1] < self.steps[0] + MAX_PROFILED:
            raise ValueError(
                f"steps={list(self.steps)}: needs a first and a last step, {MAX_PROFILED} steps at most, as [10, 15]"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about one run.

    name               the run's folder is <runs>/<name>; repeating a command resumes there. Where nothing says it, the file's name
    runs               folder of all runs
    seed               of weights, order, augmentation and noise
    init               what a fresh run's weights start from: a run folder, whose shape and vocabulary hold where
                       this file says nothing else; a folder of `python -m model.exchange.export`; a .safetensors file that
                       `python -m model.exchange.public to-ours` wrote, or open_clip's, of which the image tower is taken. From a run,
                       prompts and heads are always new, and experts may be copied from dense layers
    init_step          of that run's checkpoints: newest, best (by its evaluate.keep_best), or the step of one
    init_only          patterns of the names of parameters to take from there; all others start fresh
    steps              optimizer steps of the whole run
    micro_batches      of one step over all data ranks together; each rank runs micro_batches / data ranks of them one after
                       another, so the same step is computed on any number of ranks
    kernels            torch, or NVIDIA apex's fused LayerNorm and Adam where it is installed
    compile            passes: torch.compile makes one kernel of each pass over the residual stream (sum, LayerScale, dropped paths,
                       LayerNorm, cast) and of a router's losses, which needs a compiler and half a minute at the start; none; auto =
                       passes on a GPU with Triton, unless kernels=apex, which has a LayerNorm of its own
    attention          of rows of several lengths in training. padded: with pads and a mask; packed: one after another in torch's flash
                       attention, on a GPU in bf16 or fp16, where pads alone are hidden: words that are hidden from others, prompts, and
                       pictures beside words whose experts are merged stay padded
    log_every          steps between two lines of metrics
    save_every         steps between two checkpoints; the last step is always saved
    save_async         a save copies what the rank owns to host memory and a thread writes it while training goes on; needs
                       12 bytes of host memory (16 with optimizer.ema) for each parameter that a rank owns, until they are written
    keep_checkpoints   older checkpoints are removed
    max_skipped_steps  consecutive updates that may be skipped for non-finite gradients; in fp16 the run
                       ends only once its loss scale is down to 1
    check_every        steps between two checks that copies of parameters and batches are equal on the ranks that share them;
                       0 = never
    threads            CPU threads of a rank; 0: as OMP_NUM_THREADS says, else as a first pass is fastest with, kept for later starts
    profile            steps to look at closely; none: no profile
    """

    name: str
    runs: str = "runs"
    seed: int = 0
    init: str = ""
    init_step: int | Literal["newest", "best"] = "newest"
    init_only: tuple[str, ...] = ("*",)
    steps: int = 1000
    micro_batches: int = 2
    kernels: KernelName = "torch"
    compile: CompileName = "auto"
    attention: AttentionName = "padded"
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
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    profile: ProfileConfig | None = None

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: {RUN_NAME_RULE}")
        for key in ("steps", "micro_batches", "log_every", "save_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")
        for key in ("threads", "seed", "check_every", "max_skipped_steps"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)}: must not be negative")
        if self.evaluate.every % self.log_every:
            raise ValueError(f"evaluate.every={self.evaluate.every}: must be a multiple of log_every={self.log_every}")
        unknown = [name for name in self.evaluate.tasks if name not in {task.name for task in self.data.tasks}]
        if unknown and not self.evaluate.suite:
            raise ValueError(f"evaluate.tasks: there is no task {unknown[0]!r}")
        if self.attention == "packed" and self.parallel.precision == "fp32":
            raise ValueError(
                "attention=packed and parallel.precision=fp32: flash attention takes bf16 or fp16; choose one of both"
            )
        if self.attention == "packed":
            for tower in filter(None, (self.model, self.model.text_tower_config())):
                width = tower.width // tower.heads
                if width % 8 or width > 256:
                    raise ValueError(
                        f"attention=packed: heads of {width}: flash attention takes multiples of 8 up to 256"
                    )
        if self.compile == "passes" and self.kernels == "apex":
            raise ValueError("compile=passes and kernels=apex: apex's LayerNorm cannot be compiled; choose one of both")
        if self.threads > MAX_THREADS:
            raise ValueError(f"threads={self.threads}: must be {MAX_THREADS} at most")
        if self.profile and self.profile.steps[1] > self.steps:
            raise ValueError(f"profile.steps={list(self.profile.steps)} goes beyond the run of steps={self.steps}")
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than the run of steps={self.steps}"
            )
        followed = self.evaluate.keep_best.partition("/")[0]
        evaluated = self.evaluate.tasks or tuple(task.name for task in self.data.tasks)
        if followed and followed not in evaluated and not self.evaluate.suite:
            raise ValueError(f"evaluate.keep_best={self.evaluate.keep_best!r}: evaluated are {', '.join(evaluated)}")
        check_tune(self.optimizer.tune, self.model)
        if self.init_step != "newest" and (not self.init or (self.init_step != "best" and self.init_step < 0)):
            raise ValueError(
                f"init_step={self.init_step} chooses a checkpoint of a run, from 0 on: name the run with init=RUN"
            )
        if self.init_only != ("*",) and not self.init:
            raise ValueError(
                f"init_only={list(self.init_only)} chooses from what init names, and it names nothing: say init=PLACE, or leave it out"
            )
        if self.data.vocabulary == "init" and not self.init:
            raise ValueError("data.vocabulary=init needs init, the folder of a run")
        check_tasks(self.data)
        for task in self.data.tasks:
            self.model.task_id(task.name)
        for task in self.data.tasks:
            temperature = task.temperature
            if temperature and temperature not in self.model.temperatures:
                raise ValueError(
                    f"task {task.name}: temperature={temperature!r} is not among model.temperatures={list(self.model.temperatures)}"
                )
            # Of classification the data set tells which of two it is.
            own = dict.fromkeys(trained_temperature(task, medium) for medium in ("image", "video"))
            if not own.keys() & set(self.model.temperatures):
                raise ValueError(
                    f"task {task.name}: its logit scale is {' or '.join(own)} where nothing else is said, and that is not among "
                    f"model.temperatures={list(self.model.temperatures)}: choose one with data.tasks.{task.name}.temperature"
                )
            if task.loss == "sigmoid" and (temperature or "retrieval") not in self.model.logit_biases:
                raise ValueError(
                    f"task {task.name}: loss=sigmoid needs {temperature or 'retrieval'!r} among model.logit_biases"
                )
            if task.max_text > self.model.max_text:
                raise ValueError(
                    f"task {task.name}: max_text={task.max_text} is above model.max_text={self.model.max_text}"
                )
            if self.model.readout == "mean" and issubclass(kind_of(task), WordTask):
                raise ValueError(
                    f"task {task.name}: model.readout=mean reads a whole input once, and words are read at places of their own: use spe"
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
    if config.micro_batches % data_ranks:
        raise ConfigError(
            f"micro_batches={config.micro_batches} per step must be a multiple of the {data_ranks} data ranks"
        )
    sparse = model.num_decisions > 0
    if expert > 1 and not sparse:
        raise ConfigError(
            f"parallel.expert={expert} needs experts, but model.experts.placement={model.experts.placement} has none"
        )
    if model.experts.placement != "none" and not sparse:
        raise ConfigError(
            f"model.experts.placement={model.experts.placement} puts experts into none of the {model.depth} blocks: use none, or another"
        )
    if sparse and model.experts.num_experts % expert:
        raise ConfigError(
            f"model.experts.num_experts={model.experts.num_experts} does not divide by parallel.expert={expert}"
        )
    if sparse and model.experts.backend == "deepspeed" and tensor > 1:
        raise ConfigError(
            f"model.experts.backend=deepspeed with parallel.tensor={tensor}: its layer sends a part of the slots from each tensor rank, "
            "and our experts expect all; use parallel.tensor=1 or backend=own"
        )
    for name in ("heads", "ffn"):
        for key, shape in (("model", model), ("model.text_tower", model.text_tower)):
            if shape is not None and getattr(shape, name) % tensor:
                raise ConfigError(f"{key}.{name}={getattr(shape, name)} does not divide by parallel.tensor={tensor}")
    texts = [task.name for task in config.data.tasks if not kind_of(task).has_pictures]
    if model.text_tower and texts and tensor * expert > 1:
        raise ConfigError(
            f"task {texts[0]} is text alone: with model.text_tower it leaves the other tower out, and ranks with other tasks "
            "would wait for it; use parallel.tensor=1 and parallel.expert=1"
        )
    if tensor > 64 or 64 % tensor:
        raise ConfigError(
            f"parallel.tensor={tensor} does not divide the token table's 64-row blocks: use a power of two up to 64"
        )


def neighbours(path: Path) -> str:
    """The files of the same kind beside a path, for messages."""
    found = sorted(p.name for p in path.parent.glob(f"*{path.suffix}")) if path.parent.is_dir() else []
    return ", ".join(found) or f"no {path.suffix} files in {path.parent}"
