"""Long curves to few numbers: what a bucket of points loses is the order within it, never its extremes. Legend: N points, B buckets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Curve:
    """steps: of each bucket its first; means, lows, highs: of the finite values in it."""

    steps: list[int]
    means: list[float]
    lows: list[float]
    highs: list[float]

    @property
    def is_whole(self) -> bool:
        """Whether each bucket is one point."""
        return self.means == self.lows == self.highs


def downsampled(steps: Sequence[int], values: Sequence[float], most: int) -> Curve:
    """At most `most` buckets with nearly equal numbers of points; a curve of no more points stays as it is. Values that are not finite are
    left out."""
    values_N = np.asarray(values, dtype=np.float64)
    kept_N = np.isfinite(values_N)
    values_N, steps_N = values_N[kept_N], np.asarray(steps, dtype=np.int64)[kept_N]
    if not len(values_N):
        return Curve([], [], [], [])
    num_buckets = min(most, len(values_N))
    starts_B = np.arange(num_buckets) * len(values_N) // num_buckets
    counts_B = np.diff(np.append(starts_B, len(values_N)))
    lows_B, highs_B = np.minimum.reduceat(values_N, starts_B), np.maximum.reduceat(values_N, starts_B)
    # Divided before they are added up, as a sum of the largest numbers is no number; rounding must not lead out of the bucket.
    means_B = np.add.reduceat(values_N / np.repeat(counts_B, counts_B), starts_B).clip(lows_B, highs_B)
    return Curve(steps_N[starts_B].tolist(), means_B.tolist(), lows_B.tolist(), highs_B.tolist())


class Buckets:
    """Means of arrays over time, however many come: where there are twice as many buckets as wanted, neighbours are joined."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._per_bucket = 1
        self._steps: list[int] = []
        self._sums: list[np.ndarray] = []
        self._counts: list[int] = []

    def add(self, step: int, values: np.ndarray) -> None:
        """values: of the shape of the first; another shape begins anew, as it is another network's."""
        if self._sums and self._sums[0].shape != values.shape:
            self._steps, self._sums, self._counts, self._per_bucket = [], [], [], 1
        if self._counts and self._counts[-1] < self._per_bucket:
            self._sums[-1] = self._sums[-1] + values
            self._counts[-1] += 1
            return
        if len(self._sums) == 2 * self.most:
            self._steps = self._steps[::2]
            self._sums = [one + other for one, other in zip(self._sums[::2], self._sums[1::2], strict=True)]
            self._counts = [one + other for one, other in zip(self._counts[::2], self._counts[1::2], strict=True)]
            self._per_bucket *= 2
        self._steps.append(step)
        self._sums.append(values.astype(np.float64))
        self._counts.append(1)

    def means(self) -> tuple[list[int], np.ndarray]:
        """(first step of each bucket, means [B, ...])."""
        if not self._sums:
            return [], np.zeros((0,))
        counts_B = np.asarray(self._counts).reshape(-1, *[1] * self._sums[0].ndim)
        return list(self._steps), np.stack(self._sums) / counts_B


def fewer(steps: Sequence[int], means: np.ndarray, most: int) -> tuple[list[int], np.ndarray]:
    """Neighbouring buckets of `Buckets.means` [B, ...] joined until there are at most `most`."""
    group = -(-len(steps) // max(1, most))
    if group <= 1:
        return list(steps), means
    starts = np.arange(0, len(steps), group)
    counts = np.diff(np.append(starts, len(steps))).reshape(-1, *[1] * (means.ndim - 1))
    return list(steps[::group]), np.add.reduceat(means, starts, axis=0) / counts


def rounded(values: Sequence[float], digits: int = 4) -> list[float | int | None]:
    """With so many digits that count, as short as JSON allows; None for what is not finite."""
    return [_short(value, digits) for value in values]


def _short(value: float, digits: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    number = float(f"{value:.{digits}g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
