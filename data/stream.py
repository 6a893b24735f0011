"""Shards to micro-batches: an endless stream for training, one exact pass for evaluation.

    schedule: (seed, step, slot) -> task, position --> order: position -> (shard, index) --> shards: bytes
        --> task.example: decode, augment --> task.batch --> MicroBatch

Every stage is a function of numbers that do not depend on ranks or workers, so worker w of W simply builds every W-th
micro-batch of its rank. A bad sample is reported and replaced by the next one of its task's order.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batch import TaskBatch
from data.config import DataConfig
from data.decode import BadSample
from data.order import EpochOrder, rng
from data.packing import pack
from data.prefetch import handed_over, worker_context
from data.schedule import Schedule, Slot
from data.shards import DatasetInfo, ShardSet, read_info
from data.tasks import Task, TaskContext, make_task
from data.tasks.base import Pixels
from data.tokenizer import Tokenizer
from data.vocabulary import Vocabulary

MAX_REPLACEMENTS = 100
"""Bad samples in a row before a stream gives up."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: all that the data side knows about ranks."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Fault:
    """A sample that could not be used."""

    task: str
    source: str
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
    """Bind every task to its data set; errors name the task and the folder."""
    sources = []
    for number, task_config in enumerate(config.tasks):
        info: DatasetInfo = read_info(task_config.path)
        shards = ShardSet.open(task_config.path, task_config.split)
        context = TaskContext(task_config, info, vocabulary, pixels, config.vocabulary_sample, config.word_end)
        order = EpochOrder(shards.sizes, seed=_mix(seed, number), window=config.shuffle_window)
        sources.append(Source(make_task(context), shards, order))
    return sources


def shard_faults(sources: list[Source]) -> tuple[Fault, ...]:
    """What was wrong with whole shards when they were opened: cut off, or with an index that does not fit."""
    return tuple(
        Fault(source.name, str(source.shards.paths[0].parent), fault)
        for source in sources
        for fault in source.shards.faults
    )


def schedule_of(config: DataConfig, slots: int, seed: int) -> Schedule:
    return Schedule(
        weights=tuple(task.sampling_weight for task in config.tasks),
        batch_sizes=tuple(task.batch_size for task in config.tasks),
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
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=worker_context() if workers else None,
        pin_memory=False,
        worker_init_fn=_end_with_the_trainer if workers else None,
        collate_fn=pack if workers or device != "cpu" else None,
    )
    return handed_over(iter(loader), device)


def _end_with_the_trainer(worker: int) -> None:
    """In a worker process: end when the training process is gone, however it ended. torch's own watch looks at the parent,
    which is the fork server here, and that lives as long as its children do."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None

    def watch() -> None:
        trainer.join()
        os._exit(1)

    threading.Thread(target=watch, name="trainer watch", daemon=True).start()


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
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        slots = self.schedule.micro_batches(self.start_step, self.consumed, self.shard.index, self.shard.count)
        for slot in itertools.islice(slots, first, None, stride):
            yield build_micro_batch(self.sources[slot.task], slot, self.schedule)


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
    for attempt in range(position, position + MAX_REPLACEMENTS):
        shard, index = source.order.locate(attempt)
        try:
            sample = source.shards.read(shard, index)
            return source.task.example(sample, rng(seed, task, position, 0))
        except BadSample as error:
            faults.append(Fault(source.name, source.shards.describe(shard, index), str(error)))
    raise RuntimeError(f"task {source.name}: {MAX_REPLACEMENTS} unreadable samples in a row; the last: {faults[-1]}")


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Examples of one task in shard order, and the faults met on the way."""

    examples: list
    faults: tuple[Fault, ...]


def evaluation_pass(source: Source, batch_size: int, limit: int | None = None) -> Iterator[EvaluationBatch]:
    """Every sample once, in order, without augmentation. Bad ones are reported and left out."""
    places = [(shard, index) for shard, size in enumerate(source.shards.sizes) for index in range(size)]
    for start in range(0, min(len(places), limit or len(places)), batch_size):
        examples, faults = [], []
        for shard, index in places[start : min(start + batch_size, limit or len(places))]:
            try:
                examples.append(source.task.example(source.shards.read(shard, index), None))
            except BadSample as error:
                faults.append(Fault(source.name, source.shards.describe(shard, index), str(error)))
        yield EvaluationBatch(examples, tuple(faults))


def _mix(seed: int, number: int) -> int:
    return seed * 1009 + number
