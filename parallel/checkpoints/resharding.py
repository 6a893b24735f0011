"""Copy what a stored run of elements and a wanted one share, however the tensor was cut when it was stored and is cut now.

A *run* is a flat range of a part of a logical tensor. It falls into boxes (a range in every dimension of the logical tensor) that are
one piece of memory each, at most 2 n - 1 for n dimensions: rows before the first whole one, whole ones, rows after the last. Two boxes
overlap in a box, and that is copied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from torch import Tensor

from parallel.placement import Placement

Read = Callable[[int, int], Tensor]
"""(first element, elements) of a stored run -> [elements]."""
SPAN = 1 << 22
"""Elements read at a time."""
GAP = 1 << 14
"""Rows of fewer elements are read whole where only a part of each is wanted: skipping 64 KiB saves no time."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Elements [start, stop) of the flattened part that the placement leaves of a logical tensor."""

    placement: Placement
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Box:
    """A range in every dimension; `offset` is where its memory begins in the run."""

    offset: int
    start: tuple[int, ...]
    size: tuple[int, ...]

    def below(self, index: int, offset: int) -> Box:
        """The same box in row `index` of a tensor with one more dimension."""
        return Box(self.offset + offset, (index, *self.start), (1, *self.size))


def copy_overlap(read: Read, stored: Run, wanted: Run, out: Tensor) -> None:
    """Fill the elements of `out` [stop - start of wanted] that the stored run has; reads little else."""
    if stored.placement == wanted.placement:
        start, stop = max(stored.start, wanted.start), min(stored.stop, wanted.stop)
        for at in range(start, stop, SPAN):
            numel = min(SPAN, stop - at)
            out.narrow(0, at - wanted.start, numel).copy_(read(at - stored.start, numel))
        return
    if _common(_part(stored.placement), _part(wanted.placement)) is None:
        return
    targets = list(boxes(wanted))
    for source in boxes(stored):
        for target in targets:
            common = _common(source, target)
            if common is None:
                continue
            first, size = common
            view = out.narrow(0, target.offset, math.prod(target.size)).view(target.size)
            for dim in range(len(size)):
                view = view.narrow(dim, first[dim] - target.start[dim], size[dim])
            inside = tuple(a - b for a, b in zip(first, source.start, strict=True))
            _copy(read, source.offset, source.size, inside, size, view)


def boxes(run: Run) -> Iterator[Box]:
    """Boxes of the logical tensor that make up the run, in its order."""
    origin = _part(run.placement).start
    for box in _split(run.placement.local_shape, run.start, run.stop):
        start = tuple(a + b for a, b in zip(box.start, origin, strict=True))
        yield Box(box.offset - run.start, start, box.size)


def _split(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    if start >= stop:
        return
    if not shape:
        yield Box(0, (), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if start % row:
        index, end = start // row, min(first * row, stop)
        yield from (b.below(index, index * row) for b in _split(shape[1:], start - index * row, end - index * row))
    if first < last:
        yield Box(first * row, (first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:]))
    if first <= last and stop % row:
        yield from (b.below(last, last * row) for b in _split(shape[1:], 0, stop - last * row))


def _part(placement: Placement) -> Box:
    """The box of the logical tensor that the cuts leave."""
    start = [0] * len(placement.shape)
    for cut in placement.cuts:
        start[cut.dim] = cut.index * (placement.shape[cut.dim] // cut.count)
    return Box(0, tuple(start), placement.local_shape)


def _common(a: Box, b: Box) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(start, size) of what both hold."""
    start = tuple(map(max, a.start, b.start))
    stop = tuple(min(s + n, t + m) for s, n, t, m in zip(a.start, a.size, b.start, b.size, strict=True))
    size = tuple(y - x for x, y in zip(start, stop, strict=True))
    return (start, size) if all(n > 0 for n in size) else None


def _copy(
    read: Read, offset: int, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...], out: Tensor
) -> None:
    """The box (start, size) of a stored block of `shape` whose memory begins at `offset`, into `out` of that size."""
    if not shape:
        out.copy_(read(offset, 1).view(()))
        return
    row = math.prod(shape[1:])
    if row > SPAN or (row > GAP and size[1:] != shape[1:]):
        for index in range(size[0]):
            _copy(read, offset + (start[0] + index) * row, shape[1:], start[1:], size[1:], out[index])
        return
    rows = max(1, SPAN // row)
    for index in range(0, size[0], rows):
        taken = min(rows, size[0] - index)
        part = read(offset + (start[0] + index) * row, taken * row).view(taken, *shape[1:])
        for dim in range(1, len(shape)):
            part = part.narrow(dim, start[dim], size[dim])
        out[index : index + taken].copy_(part)
