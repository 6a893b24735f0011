"""Dataclasses whose tensors move together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T", bound="Movable")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """To a device from pinned memory, so that nobody waits."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Movable:
    def map(self: _T, function: Callable[[Tensor], Tensor]) -> _T:
        """A copy with `function` applied to every tensor."""

        def apply(value):
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Movable):
                return value.map(function)
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return value

        fields = {f.name: apply(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**fields)

    def to(self: _T, device: torch.device | str) -> _T:
        """A copy whose tensors lie on `device`."""
        return self if str(device) == "cpu" else self.map(lambda tensor: tensor.to(device, non_blocking=True))
