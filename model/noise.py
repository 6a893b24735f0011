"""Random numbers of a forward pass as a function of a key and a counter, so that resume, recomputation, any layout and any device draw
the same, and no device waits for the host.

Keys are derived from (seed, step, number of the micro-batch) by the loop, and from names (layer, decision) on the way down. `None` means
evaluation: no noise, no dropped branch. A counter says which row, token or group draws (model/layout.py). Candidates that data ranks encode
together have a key of the step and count by a row's own number: whoever encodes a row, in whatever part of a pass, draws the same for it.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple, overload

import torch
from torch import Tensor


class Keys(NamedTuple):
    """own: of a micro-batch; shared: of what all micro-batches of a step have in common. They are derived by the same names."""

    own: int
    shared: int


Key = int | None
_FACTORS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)
"""Odd numbers of 64 bits, signed, whose products mix bits well (those of SplitMix64)."""
WIDEST = 1 << 12
"""Numbers that one counter may draw for one key."""


@overload
def derive(key: int, *names: int | str) -> int: ...


@overload
def derive(key: None, *names: int | str) -> None: ...


@overload
def derive(key: Keys, *names: int | str) -> Keys: ...


@overload
def derive(key: int | Keys | None, *names: int | str) -> int | Keys | None: ...


def derive(key: int | Keys | None, *names: int | str) -> int | Keys | None:
    """A new key for each different path of names."""
    if key is None:
        return None
    if isinstance(key, Keys):
        return Keys(derive(key.own, *names), derive(key.shared, *names))
    digest = hashlib.blake2b(repr((key, *names)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def keys_of(seed: int, step: int, number: int) -> Keys:
    """Of a micro-batch of a step."""
    return Keys(derive(seed, "noise", step, number), derive(seed, "noise", step, "shared"))


def both(key: int | Keys | None) -> Keys | None:
    """A single number stands for both."""
    return Keys(key, key) if isinstance(key, int) else key


def derive_own(key: int | Keys | None, *names: int | str) -> Keys | None:
    """Where a pass is cut into parts: what all micro-batches of a step have in common keeps its key."""
    keys = both(key)
    return None if keys is None else Keys(derive(keys.own, *names), keys.shared)


def each(counter_N: Tensor, width: int) -> Tensor:
    """[N, width]: counters for several numbers of each."""
    assert width <= WIDEST
    return counter_N[:, None] * WIDEST + torch.arange(width, device=counter_N.device)


def uniform(key: int, counter: Tensor) -> Tensor:
    """fp32 in [0, 1), multiples of 2^-24, in the counter's shape."""
    return _bits(key, counter).float().mul_(2.0**-24)


def normal(key: int, counter: Tensor) -> Tensor:
    """Standard normal numbers in fp32."""
    # Half of the widest number rounds up to 1, whose number would be infinite: one draw in 2^24.
    inside = _bits(key, counter).float().add_(0.5).mul_(2.0**-23).sub_(1.0).clamp_(max=1 - 2.0**-24)
    return inside.erfinv_().mul_(math.sqrt(2.0))


def mixed(x: Tensor) -> Tensor:
    """Each int64 hashed to another one: rounds of multiply and xor-shift, whose products wrap alike everywhere."""
    x = x * _FACTORS[0]
    for factor in (_FACTORS[1], _FACTORS[0]):
        x.bitwise_xor_(x >> 30).mul_(factor)
    return x.bitwise_xor_(x >> 31)


def _bits(key: int, counter: Tensor) -> Tensor:
    """24 bits."""
    return mixed(counter + key).bitwise_right_shift_(32).bitwise_and_(0xFFFFFF)
