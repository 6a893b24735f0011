"""Random numbers of a forward pass as a function of a key, so that resume, recomputation and any layout draw the same.

A key is derived from (seed, step, number of the micro-batch) by the loop and from names (pass, layer, decision) on the way
down. `None` means evaluation: no noise, no dropped branch. Candidates that data ranks encode together have a key of the step, and
numbers by a row's own number (a hash of both): whoever encodes a row, in whatever part of a pass, draws the same for it.
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


Key = int | Keys | None
"""A single number stands for both."""
_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@overload
def derive(key: int, *names: int | str) -> int: ...


@overload
def derive(key: None, *names: int | str) -> None: ...


@overload
def derive(key: int | Keys, *names: int | str) -> int | Keys: ...


@overload
def derive(key: Key, *names: int | str) -> Key: ...


def derive(key: Key, *names: int | str) -> Key:
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


def derive_own(key: Key, *names: int | str) -> Key:
    """Where a pass is cut into parts: what all micro-batches of a step have in common keeps its key."""
    return None if key is None else Keys(derive(own_of(key), *names), shared_of(key))


def own_of(key: int | Keys) -> int:
    return key.own if isinstance(key, Keys) else key


def shared_of(key: int | Keys) -> int:
    return key.shared if isinstance(key, Keys) else key


def normal(key: int | Keys, shape: tuple[int, ...], like: Tensor, ids_N: Tensor | None = None) -> Tensor:
    """Standard normal numbers in fp32. Drawn on the CPU so that every device sees the same. ids_N: numbers of the last rows of the
    shape, which draw by them."""
    own = torch.randn(_without(shape, ids_N), generator=_generator(key)).to(like.device)
    if ids_N is None:
        return own
    first_NW, second_NW = _hashed(key, ids_N, 2 * math.prod(shape[1:])).chunk(2, dim=1)
    drawn_NW = torch.sqrt(-2 * torch.log1p(-first_NW)) * torch.cos(2 * math.pi * second_NW)
    return torch.cat([own, drawn_NW.view(-1, *shape[1:])])


def uniform(key: int | Keys, shape: tuple[int, ...], like: Tensor, ids_N: Tensor | None = None) -> Tensor:
    """In [0, 1), in the same way."""
    own = torch.rand(_without(shape, ids_N), generator=_generator(key)).to(like.device)
    if ids_N is None:
        return own
    return torch.cat([own, _hashed(key, ids_N, math.prod(shape[1:])).view(-1, *shape[1:])])


def _without(shape: tuple[int, ...], ids_N: Tensor | None) -> tuple[int, ...]:
    return shape if ids_N is None else (shape[0] - len(ids_N), *shape[1:])


def _generator(key: int | Keys) -> torch.Generator:
    return torch.Generator().manual_seed(own_of(key))


def _hashed(key: int | Keys, ids_N: Tensor, width: int) -> Tensor:
    """[N, width] in [0, 1): 24 bits of a hash of key, id and column (the finaliser of SplitMix64, whose products wrap)."""
    columns_W = torch.arange(1, width + 1, device=ids_N.device)
    bits_NW = _mixed(_mixed(_mixed(ids_N) + shared_of(key))[:, None] + columns_W * _GOLDEN)
    return ((bits_NW >> 40) & 0xFFFFFF).float() / (1 << 24)


def _mixed(bits: Tensor) -> Tensor:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, shift: int) -> Tensor:
    """To the right, with zeros for the sign."""
    return (bits >> shift) & ((1 << (64 - shift)) - 1)
