"""Shards to micro-batches: an endless stream for training. (data/passes.py: one exact pass for evaluation.)

    schedule: (seed, step, slot) -> task, position --> order: position -> (shard, index) --> shards: bytes
        --> task.example: decode, augment --> task.batch --> MicroBatch

Every stage is a function of numbers that do not depend on ranks or workers, so worker w of W simply builds every W-th
micro-batch of its rank. A bad sample is reported and replaced by the next one of its task's order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.allocator import keep_freed_memory
from data.config import DataConfig
from data.lending import Lender
from data.micro_batch import MicroBatch, build_micro_batch
from data.opening import Source
from data.parent import end_with_parent, leave_group
from data.prefetch import handed_over, worker_context
from data.schedule import Schedule, shares
from data.sources import Ahead


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: all that the data side knows about ranks."""

    index: int = 0
    count: int = 1


def schedule_of(config: DataConfig, slots: int, seed: int, sources: Sequence[Source] = ()) -> Schedule:
    """`sources` are needed where batch sizes or shares follow from the data. Raises ValueError."""
    tasks = [source.task.config for source in sources] or list(config.tasks)
    if not sources and (config.mixture == "sizes" or any(task.batch_tokens for task in tasks)):
        raise ValueError("mixture=sizes and batch_tokens need the opened sources")
    weights = [task.sampling_weight for task in tasks]
    sizes = [source.order.total for source in sources]
    return Schedule(
        weights=shares(weights, sizes, config.mixture, config.mixture_temperature) if sizes else tuple(weights),
        batch_sizes=tuple(task.batch_size for task in tasks),
        slots=slots,
        seed=seed,
        draw=config.draw,
    )


def training_stream(
    sources: list[Source],
    schedule: Schedule,
    shard: Shard,
    start_step: int,
    consumed: tuple[int, ...],
    workers: int,
    device: str = "cpu",
) -> Iterator[MicroBatch]:
    """Micro-batches of this data rank from `start_step` on, without end, their tensors on `device`. Workers start at once."""
    dataset = _Stream(sources, schedule, shard, start_step, consumed)
    packs = workers or device != "cpu"
    return handed_over(iter(loader_of(dataset, workers, Lender() if packs else None)), device)


def loader_of(dataset: IterableDataset, workers: int, collate: Callable[[Any], Any] | None = None) -> DataLoader:
    """What the dataset yields, worker by worker in turn; `collate` is applied where it is made."""
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=worker_context() if workers else None,
        pin_memory=False,
        worker_init_fn=_start_worker if workers else None,
        collate_fn=collate,
    )


def _start_worker(worker: int) -> None:
    leave_group()
    end_with_parent()
    keep_freed_memory()


class _Stream(IterableDataset):
    def __init__(
        self,
        sources: list[Source],
        schedule: Schedule,
        shard: Shard,
        start_step: int,
        consumed: tuple[int, ...],
    ) -> None:
        self.sources, self.schedule, self.shard = sources, schedule, shard
        self.start_step, self.consumed = start_step, consumed

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = get_worker_info()
        return self.part(worker.id, worker.num_workers) if worker else self.part(0, 1)

    def part(self, worker: int, workers: int) -> Iterator[MicroBatch]:
        """What one worker process builds."""
        slots = self.schedule.micro_batches(self.start_step, self.consumed, self.shard.index, self.shard.count)
        with contextlib.closing(_FetchingAhead(self.sources, self.consumed)) as ahead:
            for slot in itertools.islice(slots, worker, None, workers):
                ahead.reached(slot.task, slot.start)
                yield build_micro_batch(self.sources[slot.task], slot, self.schedule)


class _FetchingAhead:
    """Has the shards of each remote task's window and of the next one fetched, as the stream goes on."""

    def __init__(self, sources: list[Source], consumed: tuple[int, ...]) -> None:
        self._sources = sources
        self._positions = {task: consumed[task] for task, source in enumerate(sources) if source.shards.is_remote}
        self._ahead = Ahead()
        self._want()

    def reached(self, task: int, position: int) -> None:
        if task in self._positions:
            window = self._sources[task].order.window
            entered = self._positions[task] // window != position // window
            self._positions[task] = position
            if entered:
                self._want()

    def _want(self) -> None:
        jobs = []
        for task, position in self._positions.items():
            shards, order = self._sources[task].shards, self._sources[task].order
            jobs += [functools.partial(shards.fetch, shard) for shard in order.shards_near(position)]
        self._ahead.want(jobs)

    def close(self) -> None:
        self._ahead.close()
