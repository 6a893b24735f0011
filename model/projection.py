"""A linear of the block, dense or a bank of experts, under one call: (x_TI, decision) -> y_TO, for all tokens of a pass."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call

from model.config import LoraConfig, ModelConfig
from model.moe.experts import ExpertLinear
from model.moe.layer import Decision
from model.tuning.lora import LowRankUpdate
from parallel.collectives import Axis
from parallel.linear import column_linear, row_linear
from parallel.mesh import Mesh
from parallel.placement import placement_of
from parallel.precision import is_lowering, lowered

Linear = Literal["qkv", "out", "up", "down"]
SIDES: dict[Linear, Literal["column", "row"]] = {"qkv": "column", "out": "row", "up": "column", "down": "row"}


class DenseProjection(nn.Module):
    """One linear for all tokens; there is no decision to follow."""

    def __init__(self, linear: nn.Module, lora: LoraConfig | None, tensor: Axis) -> None:
        super().__init__()
        self.linear, self.is_cut = linear, tensor.size > 1
        weight = linear.get_parameter("weight")
        self.lora = LowRankUpdate(lora, placement_of(weight), tensor) if lora else None

    def forward(self, x_TI: Tensor, decision: Decision) -> Tensor:
        updated: dict[str, Tensor] = {}
        if self.lora is not None:
            updated["weight"] = self.lora(self.linear.get_parameter("weight"))
        if self.is_cut and is_lowering(x_TI.device):  # autocast does not reach into megatron-core's products on a CPU
            of_linear = dict(self.linear.named_parameters()) | updated
            updated = {name: lowered(parameter) for name, parameter in of_linear.items()}
        y_TO: Tensor = functional_call(self.linear, updated, (lowered(x_TI),)) if updated else self.linear(x_TI)
        return y_TO


class SparseProjection(nn.Module):
    """A bank of linear experts, used as the decision says."""

    def __init__(self, bank: ExpertLinear) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, x_TI: Tensor, decision: Decision) -> Tensor:
        assert decision is not None, "a sparse projection needs a routing decision"
        return decision.apply(self.bank, x_TI)


def lora_of(config: ModelConfig, linear: Linear) -> LoraConfig | None:
    """The updates of a linear, if it has any."""
    return config.lora if config.lora and linear in config.lora.targets else None


def projection(
    config: ModelConfig, linear: Linear, in_features: int, out_features: int, sparse: bool, mesh: Mesh
) -> nn.Module:
    side, lora = SIDES[linear], lora_of(config, linear)
    if sparse:
        return SparseProjection(ExpertLinear(in_features, out_features, config.experts.num_experts, side, mesh, lora))
    make = column_linear if side == "column" else row_linear
    return DenseProjection(make(in_features, out_features, mesh), lora, mesh.tensor)


def banks_of(*projections: nn.Module) -> tuple[ExpertLinear, ...]:
    return tuple(projection.bank for projection in projections if isinstance(projection, SparseProjection))
