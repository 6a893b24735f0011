"""The two linears of the feed-forward branch with GELU (erf) between them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from model.config import ModelConfig
from model.moe.layer import Decision
from model.projection import projection
from parallel.mesh import Mesh


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, sparse: bool, mesh: Mesh) -> None:
        super().__init__()
        self.up = projection(config, config.width, config.ffn, "column", sparse, mesh)
        self.down = projection(config, config.ffn, config.width, "row", sparse, mesh)

    def forward(self, x_BLD: Tensor, decision: Decision) -> Tensor:
        return self.down(gelu(self.up(x_BLD, decision)), decision)
