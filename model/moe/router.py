"""Routers: what a decision is made from. Gate arithmetic is fp32 (papers.md 2.4, 2.5).

Legend: T tokens, D width, G groups, A attribute bits, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.attributes import NUM_ATTRIBUTES
from model.config import ExpertConfig
from model.moe.routing import GroupRouting, TokenRouting, capacity, kept_choices, scatter_weights, top_k
from model.noise import Key, normal
from parallel.kernels import Kernels


class AttributeRouter(nn.Module):
    """One decision per group from its bit vector: z = W LN(A a + b). Sees no data, so the experts can be merged."""

    def __init__(self, width: int, config: ExpertConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(NUM_ATTRIBUTES, width)
        self.norm = kernels.layer_norm(width)
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def forward(self, attributes_GA: Tensor, noise: Key) -> GroupRouting:
        with torch.autocast(attributes_GA.device.type, enabled=False):
            logits_GE = self.gate(self.norm(self.embed(attributes_GA.to(self.gate.weight.dtype)))).float()
            probs_GE = _noisy(logits_GE, self.config, noise).softmax(dim=-1)
            ids_GK, weights_GK = top_k(probs_GE, self.config.top_k, self.config.renormalise)
            return GroupRouting(scatter_weights(ids_GK, weights_GK, self.config.num_experts))


class TokenRouter(nn.Module):
    """One decision per token from its hidden state: z = W x."""

    def __init__(self, width: int, config: ExpertConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(width, config.num_experts, bias=False)

    def forward(self, x_TD: Tensor, noise: Key) -> TokenRouting:
        """x_TD holds valid tokens only: pads must not take capacity or count in a loss."""
        config = self.config
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = nn.functional.linear(x_TD.float(), self.gate.weight.float())
            probs_TE = _noisy(logits_TE, config, noise).softmax(dim=-1)
            ids_TK, weights_TK = top_k(probs_TE, config.top_k, config.renormalise)
            if config.capacity_factor:
                slots = capacity(x_TD.shape[0], config.top_k, config.capacity_factor, config.num_experts)
                kept_TK = kept_choices(ids_TK, probs_TE.detach().amax(dim=-1), slots, config.num_experts)
                weights_TK = weights_TK * kept_TK
            return TokenRouting(ids_TK, weights_TK, probs_TE)


ROUTERS = {"attribute": AttributeRouter, "token": TokenRouter}


def _noisy(logits_NE: Tensor, config: ExpertConfig, noise: Key) -> Tensor:
    if noise is None or config.noise_std == 0:
        return logits_NE
    std = config.noise_std / config.num_experts
    return logits_NE + std * normal(noise, tuple(logits_NE.shape), logits_NE)
