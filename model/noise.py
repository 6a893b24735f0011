"""Random numbers of a forward pass as a function of a key, so that resume, recomputation and any layout draw the same.

A key is derived from (seed, step, number of the micro-batch) by the loop and from names (pass, layer, decision) on the way
down. `None` means evaluation: no noise, no dropped branch.
"""

from __future__ import annotations

import hashlib
from typing import overload

import torch
from torch import Tensor

Key = int | None


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


def normal(key: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers in fp32. Drawn on the CPU so that every device sees the same."""
    return torch.randn(shape, generator=_generator(key)).to(like.device)


def uniform(key: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.rand(shape, generator=_generator(key)).to(like.device)


def _generator(key: int) -> torch.Generator:
    return torch.Generator().manual_seed(key)
