"""Shared memory that a worker process lends to its trainer, a micro-batch at a time, and gets back when no tensor uses it.

Fresh memory for every micro-batch costs more than filling it does: the system clears each page, both sides map it, and its
descriptor passes through a socket. Lent memory is mapped once; after that a micro-batch is a short note in the loader's queue.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data.workers.packing import ALIGNMENT, Packed, Packing, pack

_LENT = 0  # this byte is 1 from lending to giving back; what is lent starts at ALIGNMENT


@dataclasses.dataclass(frozen=True)
class Loan:
    """A packed item in piece `number` of a worker's memory. memory_N: that piece where it is lent for the first time."""

    worker: int
    number: int
    memory_N: Tensor | None
    size: int
    note: bytes


class Lender:
    """Packs items, in a worker process into memory that it lends. There are as many pieces as were ever out at one time."""

    def __init__(self, kept: Sequence[Any] = ()) -> None:
        """kept: see Packing."""
        self._kept = kept
        self._pieces: list[Tensor] = []

    def __call__(self, item: Any) -> Packed | Loan:
        worker = get_worker_info()
        if worker is None:
            return pack(item, self._kept)
        packing = Packing(item, self._kept)
        number, fresh = self._free(ALIGNMENT + packing.size)
        memory_N = self._pieces[number]
        packed = packing.into(memory_N[ALIGNMENT : ALIGNMENT + packing.size])
        memory_N[_LENT] = 1
        return Loan(worker.id, number, memory_N if fresh else None, packing.size, packed.note)

    def _free(self, size: int) -> tuple[int, bool]:
        """(a piece of at least `size` bytes that is not lent, whether it is new)."""
        free = sorted((len(memory_N), number) for number, memory_N in enumerate(self._pieces) if not memory_N[_LENT])
        for length, number in free:
            if length >= size:
                return number, False
        if free:
            number = free[-1][1]
            self._pieces[number] = _shared(size)
        else:
            number = len(self._pieces)
            self._pieces.append(_shared(size))
        return number, True


class Borrower:
    """What workers lent, in the trainer."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], Tensor] = {}

    def __call__(self, loan: Loan) -> Packed:
        """Every loan once, in the order of each worker."""
        if loan.memory_N is not None:
            self._pieces[loan.worker, loan.number] = loan.memory_N
        memory_N = self._pieces[loan.worker, loan.number].numpy()
        buffer_N = memory_N[ALIGNMENT : ALIGNMENT + loan.size]
        # torch holds this very array for as long as any tensor looks into it.
        weakref.finalize(buffer_N, _give_back, memory_N).atexit = False
        return Packed(torch.from_numpy(buffer_N), loan.note)


def _give_back(memory_N: np.ndarray) -> None:
    memory_N[_LENT] = 0


def _shared(size: int) -> Tensor:
    """uint8, as many bytes as the next power of two: what is never touched takes no memory. Without a name, so nothing is left
    behind, and on Linux outside /dev/shm, which is small in containers."""
    size = 1 << (size - 1).bit_length()
    if hasattr(os, "memfd_create") and torch.multiprocessing.get_sharing_strategy() == "file_descriptor":
        descriptor = os.memfd_create("micro-batch")
        try:
            os.ftruncate(descriptor, size)
            storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, size)  # type: ignore[attr-defined]
        finally:
            os.close(descriptor)
    else:
        storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)
