"""Attention by plain products, for processors that multiply in bf16.

torch's fused attention on a CPU is slower in bf16 than in fp32, most for short sequences (docs/performance.md).
Legend: B rows, H heads, L places that ask, S places that are seen, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from parallel.precision import exactly

MOST_PLACES = 1024
"""Longer sequences are left to torch: probabilities [B, H, L, S] are kept for the backward pass."""


def attention(q_BHLd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, bias: Tensor | None) -> Tensor:
    """[B, H, L, d]; bias: added to scores. Scores and softmax are fp32 whatever the products are in."""
    if is_slow_when_fused(q_BHLd) and k_BHSd.shape[2] <= MOST_PLACES:
        y_BHLd: Tensor = _Products.apply(q_BHLd, k_BHSd, v_BHSd, bias)
        return y_BHLd
    return scaled_dot_product_attention(q_BHLd, k_BHSd, v_BHSd, attn_mask=bias)


def is_slow_when_fused(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


class _Products(torch.autograd.Function):
    """Every row sees a place at least."""

    @staticmethod
    def forward(ctx, q_BHLd, k_BHSd, v_BHSd, bias):
        # A product in bf16 would round scores of 256 and 257 to one number; there is none on a CPU that gives fp32.
        with exactly(q_BHLd.device):
            scores_BHLS = (q_BHLd.float() @ k_BHSd.float().mT).mul_(q_BHLd.shape[-1] ** -0.5)
        if bias is not None:
            scores_BHLS += bias
        weights_BHLS = scores_BHLS.softmax(dim=-1).to(v_BHSd.dtype)
        ctx.save_for_backward(q_BHLd, k_BHSd, v_BHSd, weights_BHLS)
        return weights_BHLS @ v_BHSd

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BHLd):
        q_BHLd, k_BHSd, v_BHSd, weights_BHLS = ctx.saved_tensors
        dweights_BHLS = dy_BHLd @ v_BHSd.mT
        dscores_BHLS = torch._softmax_backward_data(dweights_BHLS, weights_BHLS, -1, weights_BHLS.dtype)
        dscores_BHLS.mul_(q_BHLd.shape[-1] ** -0.5)
        return dscores_BHLS @ k_BHSd, dscores_BHLS.mT @ q_BHLd, weights_BHLS.mT @ dy_BHLd, None
