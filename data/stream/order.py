"""In which order samples come: a pure function of (seed, epoch), whatever the number of ranks and workers.

An epoch permutes the shards, lays their samples end to end, and permutes inside windows of that line. Position p of the
endless stream is sample p mod N of epoch p div N; a stream's state is the one number p.

A buffer of the same size would shuffle no better: with it, too, only samples that lie less than a window apart can change
places. Here the permutation is drawn first and any sample of the window is read when its turn comes, so nothing is held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.seeding import rng


class EpochOrder:
    """sizes: samples of each shard."""

    def __init__(self, sizes: Sequence[int], seed: int, window: int) -> None:
        if sum(sizes) == 0:
            raise ValueError("the shards hold no sample")
        self.sizes, self.seed, self.window = np.asarray(sizes), seed, window
        self.total = int(self.sizes.sum())
        self._shards_memo: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._window_memo: dict[tuple[int, int], np.ndarray] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of stream position `position`."""
        epoch, offset = divmod(position, self.total)
        window, inside = divmod(offset, self.window)
        place = window * self.window + int(self._window_of(epoch, window)[inside])
        order, ends = self._shards_of(epoch)
        nth = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[nth - 1]) if nth else 0
        return int(order[nth]), place - start

    def shards_near(self, position: int) -> tuple[int, ...]:
        """The shards of the window that the position lies in and of the next one, in the order of the line."""
        epoch, offset = divmod(position, self.total)
        first = offset // self.window * self.window
        last = first + 2 * self.window - 1
        found = self._shards_between(epoch, first, min(last, self.total - 1))
        if last >= self.total:
            found += self._shards_between(epoch + 1, 0, min(last - self.total, self.window - 1, self.total - 1))
        return tuple(dict.fromkeys(found))

    def _shards_between(self, epoch: int, first: int, last: int) -> list[int]:
        """Shards with samples at places first to last, both included."""
        order, ends = self._shards_of(epoch)
        low, high = np.searchsorted(ends, [first, last], side="right")
        between = order[low : high + 1]
        return between[self.sizes[between] > 0].tolist()

    def _shards_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._shards_memo:
            order = rng(self.seed, epoch).permutation(len(self.sizes))
            self._shards_memo = {epoch: (order, np.cumsum(self.sizes[order]))}
        return self._shards_memo[epoch]

    def _window_of(self, epoch: int, window: int) -> np.ndarray:
        if (epoch, window) not in self._window_memo:
            size = min(self.window, self.total - window * self.window)
            self._window_memo = {(epoch, window): rng(self.seed, epoch, window).permutation(size)}
        return self._window_memo[epoch, window]
