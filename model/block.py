"""One pre-LN block: attention branch, feed-forward branch, one routing decision for each (papers.md 1.3, 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.feed_forward import FeedForward
from model.layout import SequenceLayout
from model.moe.layer import PATHS, Decision, RoutingReport
from model.noise import Key, derive, uniform
from parallel.kernels import Kernels
from parallel.mesh import Mesh


class Block(nn.Module):
    """x + s1 * Attention(LN1 x), then x + s2 * FeedForward(LN2 x); s is LayerScale, where it is on."""

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, kernels: Kernels) -> None:
        super().__init__()
        sparse = config.experts.is_sparse(layer)
        self.drop_path = config.drop_path
        self.attention_norm = kernels.layer_norm(config.width)
        self.attention = Attention(config, sparse, mesh)
        self.ffn_norm = kernels.layer_norm(config.width)
        self.ffn = FeedForward(config, sparse, mesh)
        self.attention_scale = nn.Parameter(torch.empty(config.width)) if config.layer_scale else None
        self.ffn_scale = nn.Parameter(torch.empty(config.width)) if config.layer_scale else None
        path = PATHS[config.experts.router]
        self.attention_path = path(config.width, config.experts, mesh, kernels) if sparse else None
        self.ffn_path = path(config.width, config.experts, mesh, kernels) if sparse else None

    def forward(self, x_BLD: Tensor, layout: SequenceLayout, noise: Key) -> tuple[Tensor, tuple[RoutingReport, ...]]:
        """-> (x_BLD, reports of the two decisions; none in a dense block)."""
        normed = self.attention_norm(x_BLD)
        first = _decide(self.attention_path, normed, layout, derive(noise, "attention"))
        branch = self.attention(normed, layout, first)
        x_BLD = x_BLD + self._scaled(branch, self.attention_scale, derive(noise, "drop attention"))

        normed = self.ffn_norm(x_BLD)
        second = _decide(self.ffn_path, normed, layout, derive(noise, "ffn"))
        branch = self.ffn(normed, second)
        x_BLD = x_BLD + self._scaled(branch, self.ffn_scale, derive(noise, "drop ffn"))
        return x_BLD, tuple(decision.report for decision in (first, second) if decision is not None)

    def _scaled(self, branch_BLD: Tensor, scale_D: Tensor | None, noise: Key) -> Tensor:
        if scale_D is not None:
            branch_BLD = branch_BLD * scale_D
        if noise is None or not self.drop_path:
            return branch_BLD
        keep_B11 = uniform(noise, (branch_BLD.shape[0], 1, 1), branch_BLD) >= self.drop_path
        return branch_BLD * keep_B11 / (1 - self.drop_path)


def _decide(path: nn.Module | None, x_BLD: Tensor, layout: SequenceLayout, noise: Key) -> Decision:
    return None if path is None else path(x_BLD, layout, noise)
