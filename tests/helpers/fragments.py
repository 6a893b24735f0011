"""Fragments without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from parallel.checkpoints import Fragment
from parallel.placement import Cut, Placement


def fragment(
    name: str = "w",
    values: Iterable[float] = range(6),
    shape: tuple[int, ...] = (2, 3),
    start: int = 0,
    cuts: tuple[Cut, ...] = (),
    owned: bool = True,
) -> Fragment:
    """Weights alone, from `start` on of the part that the cuts leave."""
    tensor = torch.tensor(list(values), dtype=torch.float32)
    return Fragment(name, Placement(tuple(shape), cuts), start, owned, {"weight": tensor})


def filled(value: float, numel: int = 6, kinds: tuple[str, ...] = ("weight",)) -> Fragment:
    """A vector of one value in every kind."""
    return Fragment("w", Placement((numel,)), 0, True, {kind: torch.full((numel,), value) for kind in kinds})


def named(name: str, of: Fragment) -> Fragment:
    return dataclasses.replace(of, name=name)
