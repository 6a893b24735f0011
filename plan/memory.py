"""What one rank holds: weights, gradients and optimizer exactly, activations by a count of what autograd keeps.

    parameters of this rank --optimizer groups, padding--> weights, gradients, optimizer
    sequences of a micro-batch --blocks, embedding, head--> activations, exchange buffers

All sizes are bytes unless a name says numbers. Legend: n tokens of a pass, D width, F ffn, T tokens that are sent,
K choices, E experts, G condition groups, S expert ranks, t tensor ranks.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from model.config import ModelConfig
from model.tuning.trained import choose_trained
from parallel.collectives import Axis
from parallel.engine import parameter_groups
from parallel.mesh import Mesh
from parallel.norms import family_of
from parallel.placement import EXPERT_AXIS
from parallel.precision import PrecisionName, dtype_of
from plan.sizes import build_on_meta
from run.config import RunConfig

FP32 = 4
INDEX = 8
OPTIMIZER = 3 * FP32
"""A number's fp32 master weight and its two moments."""
ALIGNMENT = 2
"""DeepSpeed pads an optimizer group to a multiple of this many numbers for each of the ranks that share it."""
DEFAULT_BUCKET = 500_000_000
TENSOR_CUT = re.compile(
    r"\.(qkv|up)\.((linear|bank)\.)?(weight|bias)$|\.(out|down)\.((linear|bank)\.)?weight$|\.embedding\.tokens\.weight$"
    r"|\.(qkv|up)\.(bank\.)?lora\.up$|\.(out|down)\.(bank\.)?lora\.down$"
)
"""Parameters that parallel/linear.py and ExpertLinear cut over tensor ranks, each into equal parts."""


@dataclasses.dataclass(frozen=True)
class Degrees:
    """Ranks on each axis; world = tensor x data, expert divides data. sequence: tensor ranks cut the rows of the residual stream."""

    tensor: int
    expert: int
    data: int
    sequence: bool = False

    @property
    def cuts_rows(self) -> bool:
        return self.sequence and self.tensor > 1

    @property
    def expert_data(self) -> int:
        """Ranks that hold the same experts."""
        return self.data // self.expert


@dataclasses.dataclass(frozen=True)
class Precision:
    """What settings say about memory. value: bytes of what products take and give; weights, gradients and the residual stream are fp32.
    bucket_numbers: of the buffer through which gradients are reduced. offloads: the optimizer lives in host memory."""

    stage: int
    value: int = FP32
    bucket_numbers: int = DEFAULT_BUCKET
    offloads: bool = False


def precision_of(engine: dict[str, Any], name: PrecisionName, device: str = "") -> Precision:
    """Of the contents of a file in ds_configs/, and of `parallel.precision`. device: where the run is; without one, `auto` means a GPU."""
    zero = engine.get("zero_optimization", {})
    half = name in ("bf16", "fp16") or (name == "auto" and (not device or dtype_of(name, device) != torch.float32))
    stage = int(zero.get("stage", 0))
    buckets = (2 if zero.get("overlap_comm") else 1) if stage and zero.get("contiguous_gradients", True) else 0
    return Precision(
        stage=stage,
        value=2 if half else FP32,
        bucket_numbers=buckets * int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)),
        offloads=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
    )


@dataclasses.dataclass(frozen=True)
class Amounts:
    """One quantity of a rank by family; padding belongs to DeepSpeed's groups."""

    dense: int = 0
    experts: int = 0
    routers: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.experts + self.routers + self.padding

    def times(self, factor: int) -> Amounts:
        return Amounts(self.dense * factor, self.experts * factor, self.routers * factor, self.padding * factor)

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Group:
    """An optimizer group on one rank, in numbers: what it holds by family (padding included), and over how many ranks
    ZeRO cuts it."""

    numbers: Amounts
    ranks: int
    is_expert: bool

    @property
    def partition(self) -> Amounts:
        """This rank's part; families share it by size, as the cut does not heed them."""
        held = self.numbers
        cut = Amounts(held.dense // self.ranks, held.experts // self.ranks, held.routers // self.ranks)
        return dataclasses.replace(cut, padding=held.total // self.ranks - cut.total)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A rank's parameters, in numbers: optimizer groups, and what is not tuned."""

    groups: tuple[Group, ...]
    frozen: Amounts


def parameters_of(run: RunConfig, layout: Degrees, vocabulary_size: int, padded: bool = True) -> Parameters:
    """Built on the meta device with this rank's experts; what tensor ranks cut is divided afterwards."""
    no_group = object()  # of a mesh on which nothing is sent
    mesh = Mesh(expert=Axis(EXPERT_AXIS, layout.expert, 0, no_group))
    objective = build_on_meta(run.model, vocabulary_size, mesh)
    choose_trained(objective, run.optimizer.tune, run.optimizer.frozen)
    numbers: dict[Any, Amounts] = {}
    frozen = Amounts()
    for name, parameter in objective.named_parameters():
        size = parameter.numel() // (layout.tensor if TENSOR_CUT.search(name) else 1)
        numbers[parameter] = dataclasses.replace(Amounts(), **{family_of(name): size})
        if not parameter.requires_grad:
            frozen += numbers[parameter]
    groups = []
    for group in parameter_groups(objective, run.optimizer, mesh):
        held = sum((numbers[parameter] for parameter in group["params"]), Amounts())
        ranks = layout.expert_data if group["moe"] else layout.data
        padding = -held.total % (ALIGNMENT * ranks) if padded else 0
        groups.append(Group(dataclasses.replace(held, padding=padding), ranks, group["moe"]))
    return Parameters(tuple(groups), frozen)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear of a block on one tensor rank."""

    inputs: int
    outputs: int
    side: str
    tensor: int

    @property
    def numbers(self) -> int:
        """Of this rank's part of the weight and the bias."""
        cut_bias = self.tensor if self.side == "column" else 1
        return self.inputs * self.outputs // self.tensor + self.outputs // cut_bias

    @property
    def local_inputs(self) -> int:
        return self.inputs // (1 if self.side == "column" else self.tensor)

    @property
    def local_outputs(self) -> int:
        return self.outputs // (self.tensor if self.side == "column" else 1)


def attention_linears(model: ModelConfig, tensor: int) -> tuple[Linear, ...]:
    width = model.width
    return Linear(width, 3 * width, "column", tensor), Linear(width, width, "row", tensor)


def ffn_linears(model: ModelConfig, tensor: int) -> tuple[Linear, ...]:
    return Linear(model.width, model.ffn, "column", tensor), Linear(model.ffn, model.width, "row", tensor)


def sparse_linears(model: ModelConfig, tensor: int) -> tuple[tuple[Linear, ...], ...]:
    """The linears of each decision of a sparse block."""
    ffn = ffn_linears(model, tensor)
    return (attention_linears(model, tensor), ffn) if model.experts.unit == "linear" else (ffn,)


def optimizer_of(parameters: Parameters, precision: Precision, averages: bool = False) -> Amounts:
    """fp32 masters, two moments and averages of this rank's part. DeepSpeed keeps masters beside fp32 weights too, but without ZeRO."""
    more = FP32 if averages else 0
    if precision.stage:
        return sum((group.partition for group in parameters.groups), Amounts()).times(OPTIMIZER + more)
    return sum((group.numbers for group in parameters.groups), Amounts()).times(2 * FP32 + more)


def reduction_of(parameters: Parameters, precision: Precision) -> int:
    """The bucket and a flat copy of what it holds, this rank's reduced gradients, one group's in fp32."""
    if not precision.stage:
        return 0
    parts = [group.partition.total for group in parameters.groups]
    tuned = sum(group.numbers.total for group in parameters.groups)
    reduced = 0 if precision.offloads else (sum(parts) + max(parts, default=0)) * FP32
    return (precision.bucket_numbers + min(precision.bucket_numbers, tuned)) * FP32 + reduced
