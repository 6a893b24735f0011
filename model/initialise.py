"""Fresh weights: every logical tensor is drawn from a seed derived from its name, then cut, so every layout starts equal.

Rules of the public code (papers.md 1.3): Xavier-uniform linears with Q, K and V as separate matrices, experts drawn
one by one, embeddings N(0, 0.02), biases 0, LayerNorm 1 / 0, logit scales log(1 / 0.07).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.noise import derive
from model.objective import Objective
from model.tuning.lora import draw_down
from parallel.placement import placement_of

EMBEDDING_STD = 0.02
INITIAL_BIAS = -10.0
"""Of the sigmoid loss (SigLIP): nearly all pairs of a batch are wrong ones, and the start says so."""


@torch.no_grad()
def initialise(objective: Objective, seed: int) -> None:
    """Fill all parameters in place."""
    norms = {f"{name}.weight" for name, module in objective.named_modules() if "norm" in name.rsplit(".", 1)[-1]}
    for name, parameter in objective.named_parameters():
        placement = placement_of(parameter)
        logical = torch.empty(placement.shape)
        key = derive(seed, "initialise", name)
        assert key is not None
        if name in norms:
            logical.fill_(1.0)
        elif name.startswith("log_scales."):
            logical.fill_(math.log(objective.config.initial_scale))
        elif name.startswith("logit_biases."):
            logical.fill_(INITIAL_BIAS)
        elif name == "similarity_weight":
            logical.fill_(1.0)
        elif name.startswith("head.") or name.endswith(".spe_bias"):
            logical.zero_()
        elif name.endswith("prompts"):
            logical.normal_(0.0, EMBEDDING_STD, generator=torch.Generator().manual_seed(key))
        elif name.endswith(".lora.up"):
            logical.zero_()
        elif name.endswith(".lora.down"):
            draw_down(logical, torch.Generator().manual_seed(key))
        elif name.endswith("_scale"):
            logical.fill_(objective.config.layer_scale)
        elif name.endswith("bias"):
            logical.zero_()
        elif name.endswith("embedding.frames.weight"):
            logical.copy_(_sine_cosine_table(*logical.shape))
        elif ".embedding." in name and ".patches." not in name:
            logical.normal_(0.0, EMBEDDING_STD, generator=torch.Generator().manual_seed(key))
        else:
            assert name.endswith(".weight"), f"no rule for {name}"
            fan_out = logical.shape[-1] if ".qkv." in name else logical.shape[-2]
            _xavier(logical, logical.shape[-1], fan_out, key)
            if logical.dim() == 3 and objective.config.experts.same_start:
                logical[1:] = logical[:1]
        parameter.copy_(placement.take(logical))


def _sine_cosine_table(length: int, width: int) -> Tensor:
    """Learned temporal positions start as one-dimensional sine-cosine, [length, width]. At N(0, 0.02) they would be lost
    beside patches and spatial positions of size 1, and short runs never learn which frame comes first."""
    omega = 10000.0 ** (-torch.arange(width // 2) / (width // 2))
    angle = torch.arange(length)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _xavier(logical: Tensor, fan_in: int, fan_out: int, key: int) -> None:
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    nn.init.uniform_(logical, -bound, bound, generator=torch.Generator().manual_seed(key))
