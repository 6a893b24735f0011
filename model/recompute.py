"""Results that are cheap to compute again need not be kept: `activation_checkpointing: selective` (Megatron-LM's idea).

    with dropped(gelu, xs) as ys:      ys = gelu of each x
        return linear(ys)              what autograd saves here of ys is x and the function; backward computes ys again

LayerNorm and GELU keep their own inputs in any case, so nothing else has to stay. Products, attention, exchanges and routing
are never repeated. `kept` has the same call and keeps everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Computed = Callable[..., contextlib.AbstractContextManager[tuple[Tensor, ...]]]
"""(function, arguments by sequence, as `map` takes them) -> a context with the results."""


def computed(activation_checkpointing: str) -> Computed:
    return dropped if activation_checkpointing == "selective" else kept


@contextlib.contextmanager
def kept(function: Callable[..., Tensor], *columns: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    yield tuple(map(function, *columns))


@contextlib.contextmanager
def dropped(function: Callable[..., Tensor], *columns: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """The function must give the same bits again. Inside another such context only the inner one drops."""
    calls = list(zip(*columns, strict=True))
    results = tuple(function(*call) for call in calls)
    if not torch.is_grad_enabled():
        yield results
        return
    again = {
        result.untyped_storage().data_ptr(): _Again(function, call)
        for result, call in zip(results, calls, strict=True)
        if result.numel()
    }

    def pack(saved: Tensor) -> Any:
        source = again.get(saved.untyped_storage().data_ptr()) if saved.numel() else None
        if source is None:
            return saved
        source.uses += 1
        return source, saved.dtype, saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        source, dtype, *view = packed
        result = source.result()
        assert result.dtype == dtype
        return result.as_strided(*view)

    with saved_tensors_hooks(pack, unpack):
        yield results


class _Again:
    """One result: computed when the first of those who saved it asks, let go when the last one has asked."""

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
