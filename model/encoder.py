"""The shared encoder: a stack of blocks, without a final LayerNorm (papers.md 1.3)."""

from __future__ import annotations

from torch import Tensor, nn

from model.block import Block
from model.config import ModelConfig
from model.layout import SequenceLayout
from model.moe.layer import RoutingReport
from model.noise import Key, derive
from parallel.kernels import Kernels
from parallel.mesh import Mesh


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, layer, mesh, kernels) for layer in range(config.depth))

    def forward(self, x_BLD: Tensor, layout: SequenceLayout, noise: Key) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (x_BLD, reports in the order of the decisions)."""
        reports: tuple[RoutingReport, ...] = ()
        for layer, block in enumerate(self.blocks):
            x_BLD, more = block(x_BLD, layout, derive(noise, layer))
            reports += more
        return x_BLD, reports
