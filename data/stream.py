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
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batch import TaskBatch
from data.budget import with_batch_size
from data.config import DataConfig
from data.order import EpochOrder, rng
from data.packing import pack
from data.parent import end_with_parent, leave_group
from data.prefetch import handed_over, worker_context
from data.schedule import Schedule, Slot, shares
from data.shards import BadSample, BadShard, DatasetError, DatasetInfo, ShardSet, read_info
from data.sources import Ahead, Cache
from data.tasks import Task, TaskContext, make_task
from data.tasks.base import Pixels
from data.tokenizer import Tokenizer
from data.vocabulary import Vocabulary

MAX_REPLACEMENTS = 100
"""Bad samples in a row before a stream gives up."""
NEIGHBOURS = 10
"""So many of the next samples are tried in place of a bad one, then others of the epoch: they may all be of one bad shard."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: all that the data side knows about ranks."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Fault:
    """A sample that could not be used, or with sample=None all or the rest of a shard.

    shard: its name without credentials; sample: index in the shard; offset: in bytes, where it is known.
    """

    task: str
    shard: str
    sample: int | None
    offset: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What the loop gets: the batch, and which part of the plan it is."""

    slot: Slot
    batch: TaskBatch
    num_samples: int
    num_tokens: int
    faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """One task bound to its shards."""

    task: Task
    shards: ShardSet
    order: EpochOrder

    @property
    def name(self) -> str:
        return self.task.config.name


def read_vocabulary(config: DataConfig) -> Vocabulary:
    """The run's vocabulary: all of CLIP's, or the union of what the run's data sets use."""
    tokenizer = Tokenizer.load()
    if config.vocabulary == "full":
        return Vocabulary.full(tokenizer)
    infos = [read_info(task.path) for task in config.tasks]
    return Vocabulary.restricted(tokenizer, itertools.chain.from_iterable(info.token_ids for info in infos))


def open_sources(config: DataConfig, vocabulary: Vocabulary, pixels: Pixels, seed: int) -> list[Source]:
    """Bind every task to its data set; errors name the task and the folder. Batch sizes of token budgets are filled in."""
    cache = Cache(Path(config.cache_dir).expanduser(), int(config.cache_gib * (1 << 30)))
    sources = []
    for number, task_config in enumerate(config.tasks):
        info: DatasetInfo = read_info(task_config.path)
        patches = (pixels.image_size // pixels.patch) ** 2
        task_config = with_batch_size(task_config, patches, video=info.kind.startswith("video"))
        if task_config.shards:
            shards = ShardSet.from_urls(task_config.shards, cache, config.allow_pipe)
        else:
            shards = ShardSet.open(task_config.path, task_config.split, cache)
        context = TaskContext(task_config, info, vocabulary, pixels, config.vocabulary_sample, config.word_end)
        order = EpochOrder(shards.sizes, seed=_mix(seed, number), window=config.shuffle_window)
        sources.append(Source(make_task(context), shards, order))
    _check_cache(sources, config)
    return sources


def _check_cache(sources: list[Source], config: DataConfig) -> None:
    """Two windows of every remote data set must fit, or shards would be fetched again for every sample."""
    needed = 0
    for source in sources:
        if source.shards.is_remote:
            listed = source.shards.listed
            in_windows = 2 * config.shuffle_window * len(listed.names) / source.order.total + 2
            needed += int(min(1.0, in_windows / len(listed.names)) * listed.bytes.sum())
    if needed > config.cache_gib * (1 << 30):
        raise DatasetError(
            f"data.cache_gib={config.cache_gib:g} is too little: two windows of data.shuffle_window={config.shuffle_window} samples "
            f"of all remote data sets span shards of {needed / (1 << 30):.3g} GiB; raise it or lower the window"
        )


def shard_faults(sources: list[Source]) -> tuple[Fault, ...]:
    """What was wrong with whole shards when their samples were counted: cut off, or no shards at all."""
    return tuple(
        Fault(source.name, source.shards.name(shard), None, None, reason)
        for source in sources
        for shard, reason in source.shards.listed.faults.items()
    )


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
    return handed_over(iter(loader_of(dataset, workers, pack if packs else None)), device)


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


def build_micro_batch(source: Source, slot: Slot, schedule: Schedule) -> MicroBatch:
    """Samples [start, start + batch size) of the source, decoded and joined."""
    size = schedule.batch_sizes[slot.task]
    faults: list[Fault] = []
    examples = [
        _example(source, position, schedule.seed, slot.task, faults)
        for position in range(slot.start, slot.start + size)
    ]
    batch = source.task.batch(examples, rng(schedule.seed, slot.task, slot.start, 1))
    num_tokens = batch.inputs.num_tokens + batch.candidates.num_tokens
    return MicroBatch(slot, batch, size, num_tokens, tuple(faults))


def _example(source: Source, position: int, seed: int, task: int, faults: list[Fault]):
    attempt = position
    for number in range(1, MAX_REPLACEMENTS + 1):
        shard, index = source.order.locate(attempt)
        try:
            sample = source.shards.read(shard, index)
            return source.task.example(sample, rng(seed, task, position, 0))
        except BadSample as error:
            faults.append(fault_of(source, shard, index, error))
        total = source.order.total
        elsewhere = position // total * total + int(rng(seed, task, position, number, 2).integers(total))
        attempt = position + number if number <= NEIGHBOURS else elsewhere
    raise RuntimeError(f"task {source.name}: {MAX_REPLACEMENTS} unreadable samples in a row; the last: {faults[-1]}")


def fault_of(source: Source, shard: int, index: int, error: BadSample) -> Fault:
    """What goes to the ledger."""
    whole = isinstance(error, BadShard)
    offset = error.offset
    if offset is None and not whole:  # the sample was read, and its content is bad
        offset = int(source.shards.ranges(shard)[index, 0])
    return Fault(source.name, source.shards.name(shard), None if whole else index, offset, error.reason)


def _mix(seed: int, number: int) -> int:
    return seed * 1009 + number
