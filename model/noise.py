"""Random numbers of a forward pass as a function of a key and a counter, so that resume, recomputation, any layout and any device draw
the same, and no device waits for the host.

A key is derived from (seed, step, number of the micro-batch) by the loop and from names (layer, decision) on the way down. `None`
means evaluation: no noise, no dropped branch. A counter says which row, token or group draws (model/layout.py).
"""

from __future__ import annotations

import hashlib
import math
from typing import overload

import torch
from torch import Tensor

Key = int | None
_FACTORS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)
"""Odd numbers of 64 bits, signed, whose products mix bits well (the first is the golden ratio's)."""
_WIDEST = 1 << 20
"""Numbers that one counter may draw for one key."""


@overload
def derive(key: int, *names: int | str) -> int: ...


@overload
def derive(key: None, *names: int | str) -> None: ...


def derive(key: Key, *names: int | str) -> Key:
    """A new key for each different path of names."""
    if key is None:
        return None
    digest = hashlib.blake2b(repr((key, *names)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def each(counter_N: Tensor, width: int) -> Tensor:
    """[N, width]: counters for several numbers of each."""
    assert width <= _WIDEST
    return counter_N[:, None] * _WIDEST + torch.arange(width, device=counter_N.device)


def uniform(key: int, counter: Tensor) -> Tensor:
    """fp32 in [0, 1), multiples of 2^-24, in the counter's shape."""
    return _bits(key, counter).float().mul_(2.0**-24)


def normal(key: int, counter: Tensor) -> Tensor:
    """Standard normal numbers in fp32."""
    half_open = _bits(key, counter).float().add_(0.5).mul_(2.0**-23).sub_(1.0)
    return half_open.erfinv_().mul_(math.sqrt(2.0))


def _bits(key: int, counter: Tensor) -> Tensor:
    """24 bits of a hash, int64: two rounds of multiply and xor-shift (as SplitMix64's), which wrap alike everywhere."""
    x = counter * _FACTORS[0] + key
    for factor in (_FACTORS[1], _FACTORS[0]):
        x.bitwise_xor_(x >> 30).mul_(factor)
    return x.bitwise_xor_(x >> 31).bitwise_right_shift_(32).bitwise_and_(0xFFFFFF)
