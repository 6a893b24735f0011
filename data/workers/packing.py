"""Anything with tensors in it as one buffer of bytes and a note of what lies where.

A micro-batch has a dozen tensors. Packed, it passes from a worker to its trainer in one piece of memory
(data/workers/shared_memory.py), and on to a device in one transfer.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; tensors start at multiples of it."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """buffer_N: uint8; note: the object, pickled, with places in the buffer for tensors. For our own processes alone."""

    buffer_N: Tensor
    note: bytes


class Packing:
    """An item on its way into a buffer. size: bytes that its tensors (on the CPU) need; those that occur twice are kept once.

    kept: objects that the other side has as well; of these, only the number is sent.
    """

    def __init__(self, item: Any, kept: Sequence[Any] = ()) -> None:
        note = io.BytesIO()
        pickler = _Pickler(note, kept)
        pickler.dump(item)
        self.size = pickler.end
        self._places, self._note = pickler.places, note.getvalue()

    def into(self, buffer_N: Tensor) -> Packed:
        """With the tensors copied to the buffer's beginning."""
        for (offset, dtype, shape), tensor in self._places.values():
            _view(buffer_N, offset, dtype, shape).copy_(tensor)
        return Packed(buffer_N, self._note)


def pack(item: Any, kept: Sequence[Any] = ()) -> Packed:
    """In a buffer of its own."""
    packing = Packing(item, kept)
    return packing.into(torch.empty(packing.size, dtype=torch.uint8))


def unpack(packed: Packed, kept: Sequence[Any] = ()) -> Any:
    """The item again; its tensors are views of the buffer, where that lies."""
    return _Unpickler(packed, kept).load()


class _Pickler(pickle.Pickler):
    def __init__(self, note: io.BytesIO, kept: Sequence[Any]) -> None:
        super().__init__(note, protocol=pickle.HIGHEST_PROTOCOL)
        self.numbers = {id(value): number for number, value in enumerate(kept)}
        self.end = 0
        self.places: dict[int, tuple[tuple[int, torch.dtype, tuple[int, ...]], Tensor]] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return self.numbers.get(id(value))
        if id(value) not in self.places:  # the tensor is held there, so that its id stays its own
            start = -(-self.end // ALIGNMENT) * ALIGNMENT
            self.end = start + value.numel() * value.element_size()
            self.places[id(value)] = ((start, value.dtype, tuple(value.shape)), value)
        return self.places[id(value)][0]


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: Packed, kept: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(packed.note))
        self.buffer_N, self.kept = packed.buffer_N, kept

    def persistent_load(self, place: Any) -> Any:
        return self.kept[place] if isinstance(place, int) else _view(self.buffer_N, *place)


def _view(buffer_N: Tensor, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return buffer_N[offset : offset + count * dtype.itemsize].view(dtype).view(shape)
