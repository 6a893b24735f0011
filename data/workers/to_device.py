"""From worker processes to the device, ahead of the step.

On the CPU a batch is taken from its worker's shared memory as it is. For a CUDA device a thread takes batches ahead, copies
each to pinned memory and from there to the device on a stream of its own; the step's stream waits for that copy alone.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from data.workers.packing import Packed, unpack
from data.workers.shared_memory import Borrower, Loan

DEPTH = 2
"""Batches that lie on a device ahead of the step."""
_T = TypeVar("_T")
_U = TypeVar("_U")


def handed_over(batches: Iterator[Any], device: str, kept: Sequence[Any] = ()) -> Iterator[Any]:
    """The batches, with packed and lent ones unpacked, their tensors on `device`. kept: what packing left out; on `device`, too."""
    borrower = Borrower()
    received = (borrower(batch) if isinstance(batch, Loan) else batch for batch in batches)
    if device == "cpu":
        return (unpack(batch, kept) if isinstance(batch, Packed) else batch for batch in received)
    copy = CudaCopy(device)
    return (unpack(packed, kept) for packed in ahead(received, copy.start, copy.finish))


class CudaCopy:
    """Packed batches to a CUDA device: `start` in the thread that runs ahead, `finish` in the one that computes."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)

    def start(self, packed: Packed) -> tuple[Packed, torch.cuda.Event]:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            buffer_N = packed.buffer_N.pin_memory().to(self.device, non_blocking=True)
            return dataclasses.replace(packed, buffer_N=buffer_N), self.stream.record_event()

    def finish(self, started: tuple[Packed, torch.cuda.Event]) -> Packed:
        packed, event = started
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(event)
        # Memory of one stream that another one uses: it must not be given away before that one is done, too.
        packed.buffer_N.record_stream(computing)
        return packed


def ahead(
    items: Iterator[_T], start: Callable[[_T], _U], finish: Callable[[_U], Any], depth: int = DEPTH
) -> Iterator[Any]:
    """`finish(start(item))` of every item. A thread takes items and starts them, at most `depth` ahead of who asks; what it
    raises is raised here. It ends when the iterator is closed."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not closed.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", start(item))
                if closed.is_set():
                    return
            put("end", None)
        except BaseException as error:  # whatever it is, it belongs to who asks
            put("error", error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield finish(value)
    finally:
        closed.set()
        thread.join(timeout=5)
