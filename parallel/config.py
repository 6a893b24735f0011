"""Options of the ranks and of the optimizer, checked when made."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from parallel.precision import PrecisionName

Tune = Literal["all", "prompts", "lora", "head"]
"""What a run trains (model/tuning/trained.py)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """world = tensor x data; expert divides data.

    tensor    degree of tensor parallelism (megatron-core)
    sequence  cut the rows of the residual stream over tensor ranks (Megatron's sequence parallelism): norms and residual sums
              hold and compute 1 / tensor of them; with tensor=1 there is nothing to cut
    expert    degree of expert parallelism (DeepSpeed-MoE)
    precision of products: bf16 and fp16 with fp32 weights, gradients, routers, norms and losses; auto = bf16 on a GPU that has it, fp32
              elsewhere
    deepspeed DeepSpeed settings (ZeRO stage, buckets): the name of a file in ds_configs/, or a path
    timeout_s a collective that waits longer fails
    stall_s   a rank whose phase of a step lasts longer reports where all ranks are, once; 0 = never
    """

    tensor: int = 1
    sequence: bool = False
    expert: int = 1
    precision: PrecisionName = "auto"
    deepspeed: str = "zero1"
    timeout_s: float = 1800.0
    stall_s: float = 600.0

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.expert < 1:
            raise ValueError(f"tensor={self.tensor} and expert={self.expert}: must be at least 1")
        if not 0 <= self.stall_s < self.timeout_s:
            raise ValueError(
                f"stall_s={self.stall_s:g} and timeout_s={self.timeout_s:g}: the report must come before a collective "
                "gives up, so stall_s must be below timeout_s; 0 = no report"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay.

    lr             peak learning rate
    min_lr         where the cosine ends
    warmup_steps   steps of the linear rise from zero
    weight_decay   on linear and expert weights alone; embeddings, gates, biases, norms and scales have none
    betas, eps     of Adam
    ema            decay of an exponential moving average of the weights, which is kept in checkpoints and taken by everything that reads a
                   run but its own training; at update n it is at most (1 + n) / (10 + n). 0 = none
    clip           largest global gradient norm; 0 turns clipping off
    layer_decay    the rate of block i of L is lr times layer_decay^(L + 1 - i), counted from 1, that of the embedding lr times
                   layer_decay^(L + 1); 1 = the same for all
    tune           all parameters; prompts: those of prompt tuning alone (model.prompts); lora: low-rank updates alone (model.lora);
                   head: the linear head alone (model.head_classes). All but `all` store what they train alone, where
                   `init` is a run and taken whole
    frozen         patterns of the names of parameters that are not tuned, for instance ["tower.*"]
    """

    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_steps: int = 50
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    ema: float = 0.0
    clip: float = 1.0
    layer_decay: float = 1.0
    tune: Tune = "all"
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.min_lr < 0 or self.min_lr > self.lr:
            raise ValueError(f"lr={self.lr} and min_lr={self.min_lr}: need 0 <= min_lr <= lr and lr > 0")
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.clip < 0:
            raise ValueError("warmup_steps, weight_decay and clip must not be negative")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: must lie in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: must lie in (0, 1]")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise ValueError(f"betas={list(self.betas)} and eps={self.eps}: betas must lie in [0, 1), eps above 0")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of step `step` (from 0): a pure function, so there is no schedule to save."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))
