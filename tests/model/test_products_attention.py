"""Attention by products against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from model import products_attention
from model.products_attention import attention
from parallel.precision import computing


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 9), st.integers(0, 4), st.sampled_from([4, 24]), st.booleans()
)
@settings(deadline=None, max_examples=40)
def test_it_is_torchs_attention_but_for_the_rounding_of_bf16(rows, heads, length, before, width, is_causal):
    """Also over keys that were there before."""
    q, k = random(rows, heads, length, width), random(rows, heads, length + before, width)
    hidden = torch.ones(length, length + before, dtype=torch.bool).triu(before + 1)
    bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -math.inf) if is_causal else None
    found, exact = (
        [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, k.flip(2))]
        for dtype in (torch.bfloat16, torch.float64)
    )
    with computing("cpu", torch.bfloat16):
        ours = attention(*found, bias)
    theirs = scaled_dot_product_attention(*exact, attn_mask=None if bias is None else bias.double())
    dy = random(*ours.shape)
    ours.backward(dy)
    theirs.backward(dy.double())
    assert ours.dtype == torch.bfloat16
    for a, b in [(ours, theirs), *((f.grad, e.grad) for f, e in zip(found, exact, strict=True))]:
        assert torch.allclose(a.double(), b, rtol=0.02, atol=0.02 * float(b.abs().max()) + 1e-6)


def test_scores_are_not_rounded_to_bf16():
    """Scores of 256 and 257, which in bf16 are one number: their weights are 1 / (1 + e) and e / (1 + e)."""
    q, k = torch.tensor([[[[32.0, 1, 0, 0]]]]).bfloat16(), torch.tensor([[[[16.0, 0, 0, 0], [16, 2, 0, 0]]]]).bfloat16()
    v = torch.tensor([[[[0.0], [1.0]]]]).bfloat16()
    assert (k @ q.mT).unique().numel() == 1
    with computing("cpu", torch.bfloat16):
        assert attention(q, k, v, None).item() == pytest.approx(math.e / (1 + math.e), abs=0.004)


@pytest.mark.parametrize(
    ("dtype", "places", "is_products"),
    [(torch.bfloat16, 3, True), (torch.bfloat16, 4, False), (torch.float32, 3, False), (torch.float16, 3, False)],
)
def test_fp32_and_long_sequences_are_left_to_torch(monkeypatch, dtype, places, is_products):
    monkeypatch.setattr(products_attention, "MOST_PLACES", 3)
    q = torch.ones(1, 1, places, 8, dtype=dtype, requires_grad=True)
    assert ("_Products" in attention(q, q, q, None).grad_fn.name()) == is_products
