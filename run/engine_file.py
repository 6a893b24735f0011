"""How DeepSpeed runs a training: one of the files in ds_configs/, checked and completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run.config import RunConfig, neighbours
from run.errors import ConfigError
from run.places import is_path
from run.strict_text import TextError, read_json

DS_CONFIGS = Path(__file__).resolve().parents[1] / "ds_configs"
PRECISION = ("bf16", "bfloat16", "fp16", "amp", "torch_autocast", "data_types")
"""DeepSpeed's sections on precision, which is ours (parallel/precision.py)."""


def read_engine_file(config: RunConfig) -> dict[str, Any]:
    """Engine settings from `parallel.deepspeed`, completed with what this configuration owns.

    Gradients are accumulated and scaled by the loop, so DeepSpeed sees one micro-batch per step.
    """
    name = config.parallel.deepspeed
    path = Path(name) if is_path(name) else DS_CONFIGS / f"{name}.json"
    engine = _read_engine(path)
    _check_engine(path, engine)
    return {
        **engine,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on the CPU too and needs no build
        "steps_per_print": 1 << 30,
        # It would wait for the device before each micro-batch and after each update, for speeds that it never prints then.
        "timers": {"throughput": {"enabled": False}},
    }


def _read_engine(path: Path) -> dict[str, Any]:
    """A mapping, as are those of its sections that are read here."""
    try:
        engine = read_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"parallel.deepspeed: {path}: {error.strerror}; there are {neighbours(path)}") from error
    except TextError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(engine, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys, got {json.dumps(engine)[:50]}")
    found = {key: engine.get(key, {}) for key in ("zero_optimization",)}
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
                f"{path}: {key} belongs to the run configuration (micro_batches, data.tasks, optimizer): remove it there"
            )
    for key in PRECISION:
        if key in engine:
            raise ConfigError(
                f"{path}: {key} is an option of the run, parallel.precision=bf16 or fp16, which keeps routers, norms and sums in fp32: "
                "remove it there"
            )
    zero = engine.get("zero_optimization", {})
    if "cpu_offload" in zero:
        raise ConfigError(
            f"{path}: zero_optimization.cpu_offload is DeepSpeed's old name: use offload_optimizer {{device: cpu}}"
        )
    stage = zero.get("stage", 0)
    if stage == 3:
        raise ConfigError(
            f"{path}: ZeRO stage 3 does not work with native experts: use stage 1 or 2, or more expert ranks"
        )
    if stage not in (0, 1, 2):
        raise ConfigError(f"{path}: zero_optimization.stage={stage}: use 0, 1 or 2")
    if zero.get("compute_grad_norm", True) is not True:
        raise ConfigError(
            f"{path}: without zero_optimization.compute_grad_norm a gradient that is not finite would be applied instead of skipped: "
            "remove it there"
        )
