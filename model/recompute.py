"""Results that are cheap to compute again need not be kept: `activation_checkpointing: selective` (Megatron-LM's idea).

    with dropped(gelu, x) as y:        y = gelu(x)
        return linear(y)               what autograd saves here of y is x and the function; backward computes y again

LayerNorm and GELU keep their own inputs in any case, so nothing else has to stay. Products, attention, exchanges and routing
are never repeated. `kept` has the same call and keeps everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Computed = Callable[..., contextlib.AbstractContextManager[Tensor]]
"""(function, its arguments, result: where it is there already) -> a context with the result."""


def computed(activation_checkpointing: str) -> Computed:
    return dropped if activation_checkpointing == "selective" else kept


@contextlib.contextmanager
def kept(function: Callable[..., Tensor], *call: Any, result: Tensor | None = None) -> Iterator[Tensor]:
    yield function(*call) if result is None else result


@contextlib.contextmanager
def dropped(function: Callable[..., Tensor], *call: Any, result: Tensor | None = None) -> Iterator[Tensor]:
    """The function must give the same bits again. Inside another such context only the inner one drops."""
    if result is None:
        result = function(*call)
    if not torch.is_grad_enabled() or not result.numel():
        yield result
        return
    again, storage = _Again(function, call), _storage(result)

    def pack(saved: Tensor) -> Any:
        if not saved.numel() or _storage(saved) != storage:
            return saved
        again.uses += 1
        return saved.dtype, saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        dtype, *view = packed
        found = again.result()
        assert found.dtype == dtype
        return found.as_strided(*view)

    with saved_tensors_hooks(pack, unpack):
        yield result


def _storage(x: Tensor) -> int:
    """Not the address of its memory, which a tensor without values does not have."""
    return x.untyped_storage()._cdata


class _Again:
    """The result: computed when the first of those who saved it asks, let go when the last one has asked."""

    def __init__(self, function: Callable[..., Tensor], call: tuple[Any, ...]) -> None:
        self.function = function
        self.call = tuple(value.detach() if isinstance(value, Tensor) else value for value in call)
        self.uses = self.asked = 0
        self.found: Tensor | None = None

    def result(self) -> Tensor:
        result = self.found
        if result is None:
            with torch.no_grad():
                result = self.function(*self.call)
        self.asked += 1
        self.found = result if self.asked % self.uses else None
        return result
