"""A CPU's kernels for torch's attention over packed rows, for which it has a GPU's alone: the call, its place in a backward pass and all
around them are torch's own.

Legend: T tokens, H heads, d head width, X rows and one more, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen


def register() -> None:
    """For this process."""
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _forward(query: Tensor, key: Tensor, value: Tensor, starts_X: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = [_shares(q_HLd, k_HLd) @ v_HLd for q_HLd, k_HLd, v_HLd in _rows(starts_X, query, key, value)]
    out = torch.cat(found, dim=1).transpose(0, 1)
    return out.contiguous(), out.new_zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, starts_X: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for q_HLd, k_HLd, v_HLd, grad_HLd in _rows(starts_X, query, key, value, grad):
        shares_HLL, dshares_HLL = _shares(q_HLd, k_HLd), grad_HLd @ v_HLd.mT
        dscores_HLL = shares_HLL * (dshares_HLL - (shares_HLL * dshares_HLL).sum(-1, keepdim=True))
        dscores_HLL = dscores_HLL * q_HLd.shape[-1] ** -0.5
        found.append((dscores_HLL @ k_HLd, dscores_HLL.mT @ q_HLd, shares_HLL.mT @ grad_HLd))
    dq, dk, dv = (torch.cat(of_rows, dim=1).transpose(0, 1).contiguous() for of_rows in zip(*found, strict=True))
    return dq, dk, dv


def _shares(q_HLd: Tensor, k_HLd: Tensor) -> Tensor:
    return (q_HLd @ k_HLd.mT * q_HLd.shape[-1] ** -0.5).softmax(-1)


def _rows(starts_X: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """[H, L, d] of each row."""
    lengths = starts_X.diff().tolist()
    yield from zip(*(x_THd.transpose(0, 1).split(lengths, dim=1) for x_THd in tensors), strict=True)
