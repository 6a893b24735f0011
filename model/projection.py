"""A linear of the block, dense or a bank of experts, under one call: (xs, decision) -> ys, for all sequences of a pass."""

from __future__ import annotations

from typing import Literal

from torch import nn

from model.config import ModelConfig
from model.layout import in_storage_order
from model.moe.experts import ExpertLinear
from model.moe.layer import Decision
from model.moe.router import States
from parallel.linear import column_linear, row_linear
from parallel.mesh import Mesh


class DenseProjection(nn.Module):
    """One linear for all tokens; there is no decision to follow."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, xs: States, decision: Decision) -> States:
        return tuple(in_storage_order(self.linear, x) for x in xs)


class SparseProjection(nn.Module):
    """A bank of linear experts, used as the decision says."""

    def __init__(self, bank: ExpertLinear) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, xs: States, decision: Decision) -> States:
        assert decision is not None, "a sparse projection needs a routing decision"
        return decision.apply(self.bank, xs)


def projection(
    config: ModelConfig,
    in_features: int,
    out_features: int,
    side: Literal["column", "row"],
    sparse: bool,
    mesh: Mesh,
) -> nn.Module:
    if sparse:
        return SparseProjection(ExpertLinear(in_features, out_features, config.experts.num_experts, side, mesh))
    make = column_linear if side == "column" else row_linear
    return DenseProjection(make(in_features, out_features, mesh))


def banks_of(*projections: nn.Module) -> tuple[ExpertLinear, ...]:
    return tuple(projection.bank for projection in projections if isinstance(projection, SparseProjection))
