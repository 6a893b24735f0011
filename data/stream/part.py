"""Training on a part of a data set: so many samples of each class, or a share of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.config import TaskConfig
from data.shards import BadSample, DatasetError, DatasetInfo, ShardSet
from data.shards.files import replacing
from data.stream.order import EpochOrder
from data.subset import chosen
from data.tasks.base import LABELLED, label_of
from data.transport import FetchError, shown


class UnreadLabelError(DatasetError):
    """What a sample's class is cannot be read now, or on this machine: without it the part would be another one than elsewhere."""

    of_one_rank = True


class PartOrder:
    """As EpochOrder, over some samples; chosen_M: their rising places in the line of all. sizes: of the shards, whole."""

    def __init__(self, sizes: Sequence[int], chosen_M: np.ndarray, seed: int, window: int) -> None:
        self.sizes, self.window, self.total = np.asarray(sizes), window, len(chosen_M)
        self._chosen_M, self._ends = chosen_M, np.cumsum(self.sizes)
        self._line = EpochOrder([self.total], seed, window)

    @property
    def digest(self) -> str:
        """A few characters that follow from which samples are chosen."""
        return hashlib.sha256(self._chosen_M.astype("<i8").tobytes()).hexdigest()[:12]

    def locate(self, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of stream position `position`."""
        place = int(self._chosen_M[self._line.locate(position)[1]])
        shard = int(np.searchsorted(self._ends, place, side="right"))
        return shard, place - int(self._ends[shard] - self.sizes[shard])

    def shards_near(self, position: int) -> tuple[int, ...]:
        """The shards of the window that the position lies in and of the next one."""
        first = position % self.total // self.window * self.window
        near_M = np.arange(first, first + 2 * self.window) % self.total
        return tuple(np.unique(np.searchsorted(self._ends, self._chosen_M[near_M], side="right")).tolist())


def order_of(
    config: TaskConfig, info: DatasetInfo, shards: ShardSet, seed: int, drawn: int, window: int
) -> EpochOrder | PartOrder:
    """The order of all samples, or of the part that `shots` and `fraction` choose.

    seed: of the order; drawn: of the choice. Raises DatasetError where there is nothing to choose from, or a class is not known for now.
    """
    if not config.shots and config.fraction == 1.0:
        return EpochOrder(shards.sizes, seed, window)
    labels_N = np.zeros(sum(shards.sizes), dtype=np.int64)
    if config.kind in LABELLED:
        try:
            labels_N = labels_of(info, shards, all_that_can_be=True)
        except BadSample as error:
            raise UnreadLabelError(
                f"task {config.name}: shots and fraction draw by class, and a sample cannot be read to tell its class: {error.reason}; "
                "mend that and start the same command again"
            ) from error
    readable_N = np.flatnonzero(labels_N >= 0)
    if not len(readable_N):
        raise DatasetError(
            f"task {config.name}: shots and fraction draw by class, and no sample of {shown(config.path)} has one that can be read: "
            "python -m data.inspect lint says why"
        )
    part_M = chosen(labels_N[readable_N], config.shots, config.fraction, drawn)
    return PartOrder(shards.sizes, readable_N[part_M], seed, window)


def labels_of(info: DatasetInfo, shards: ShardSet, all_that_can_be: bool = False) -> np.ndarray:
    """labels_N of all samples, -1 where it cannot be read; no picture is decoded. Read once on a machine and kept in the cache of shards,
    since every sample has to be touched; those that could not be read are read again, and all of a local shard that was written anew.

    all_that_can_be: raises BadSample for one that is not damaged: a disk or a store did not give it, and another rank may have it.
    """
    path, ends = _kept(info, shards), np.cumsum(shards.sizes)
    labels_N = _kept_labels(path, int(ends[-1]))
    missing = np.flatnonzero(labels_N < 0)
    for place in missing:
        shard = int(np.searchsorted(ends, place, side="right"))
        try:
            labels_N[place] = label_of(shards.read(shard, int(place - ends[shard] + shards.sizes[shard])), info)
        except BadSample as error:
            if all_that_can_be and isinstance(error.__cause__, OSError | FetchError):
                raise
    if path and (labels_N[missing] >= 0).any():
        with contextlib.suppress(OSError):  # a disk that is full or not ours: it is read again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.save(file, labels_N)
    return labels_N


def _kept_labels(path: Path | None, count: int) -> np.ndarray:
    """-1 for those that are not known yet."""
    if path:
        with contextlib.suppress(OSError, ValueError):
            labels_N = np.load(path, allow_pickle=False)
            if labels_N.shape == (count,) and labels_N.dtype == np.int64:
                return labels_N
    return np.full(count, -1, dtype=np.int64)


def _kept(info: DatasetInfo, shards: ShardSet) -> Path | None:
    """The file of the labels. Shards with other labels may have the same names and sizes: local ones are told apart by their times,
    others by their places."""
    if shards.cache is None:
        return None
    try:
        facts: list[str | int] = list(map(shards.location, range(len(shards.sizes))))
        if not shards.is_remote:
            facts = [path.stat().st_mtime_ns for path in shards.paths]
    except OSError:
        return None
    return shards.cache.folder / "labels" / f"{shards.listed.digest(info.classes, facts)}.npy"
