"""Shards to micro-batches: an endless stream for training. (data/stream/evaluation.py: one exact pass for evaluation.)

    schedule: (seed, step, number) -> task, position --> order: position -> (shard, index) --> shards: bytes
        --> task.example: decode, augment --> task.batch --> MicroBatch

Every stage is a function of numbers that do not depend on ranks or workers, so worker w of W simply builds every W-th
micro-batch of its rank. A bad sample is reported and replaced by the next one of its task's order.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import IterableDataset, get_worker_info

from data.batch import CandidateSet, Sequences
from data.config import DataConfig
from data.stream.dealing import IN_ORDER, Dealing
from data.stream.fetching import FetchingAhead
from data.stream.micro_batch import MicroBatch, build_micro_batch
from data.stream.schedule import Schedule, shares
from data.stream.share import Share
from data.stream.shared_sets import SharedSets
from data.stream.source import Source
from data.workers.loader import loader_of
from data.workers.shared_memory import Lender
from data.workers.to_device import handed_over


def schedule_of(
    config: DataConfig, micro_batches: int, seed: int, sources: Sequence[Source] = (), dealing: Dealing = IN_ORDER
) -> Schedule:
    """`sources` are needed where batch sizes or shares follow from the data. Raises ValueError."""
    tasks = [source.task.config for source in sources] or list(config.tasks)
    if not sources and (config.mixture == "sizes" or any(task.batch_tokens for task in tasks)):
        raise ValueError("mixture=sizes and batch_tokens need the opened sources")
    weights = [task.sampling_weight for task in tasks]
    sizes = [source.order.total for source in sources]
    return Schedule(
        weights=shares(weights, sizes, config.mixture, config.mixture_temperature) if sizes else tuple(weights),
        batch_sizes=tuple(task.batch_size for task in tasks),
        micro_batches=micro_batches,
        seed=seed,
        draw=config.draw,
        dealing=dealing,
    )


def training_stream(
    sources: list[Source],
    schedule: Schedule,
    share: Share,
    start_step: int,
    consumed: tuple[int, ...],
    workers: int,
    device: str = "cpu",
    task_ids: Sequence[int] = (),
) -> Iterator[MicroBatch]:
    """Micro-batches of this data rank from `start_step` on, without end, their tensors on `device`. Workers start at once. task_ids: of
    the tasks, where routers tell them apart."""
    shared = SharedSets(sources, task_ids, schedule.seed)
    dataset = _Stream(sources, schedule, share, start_step, consumed, shared)
    packs = workers or device != "cpu"
    kept: list[Sequences | CandidateSet] = [
        candidates for source in sources for candidates in source.task.kept_candidates
    ]
    kept += shared.kept
    batches = loader_of(dataset, workers, Lender(kept) if packs else None)
    return handed_over(batches, device, [candidates.to(device) for candidates in kept])


class _Stream(IterableDataset):
    def __init__(
        self,
        sources: list[Source],
        schedule: Schedule,
        share: Share,
        start_step: int,
        consumed: tuple[int, ...],
        shared: SharedSets | None = None,
    ) -> None:
        self.sources, self.schedule, self.share, self.shared = sources, schedule, share, shared
        self.start_step, self.consumed = start_step, consumed

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = get_worker_info()
        return self.part(worker.id, worker.num_workers) if worker else self.part(0, 1)

    def part(self, worker: int, workers: int) -> Iterator[MicroBatch]:
        """What one worker process builds."""
        assignments = self.schedule.of_rank(self.start_step, self.consumed, self.share.index, self.share.count)
        with contextlib.closing(FetchingAhead(self.sources, self.consumed)) as ahead:
            for assignment in itertools.islice(assignments, worker, None, workers):
                ahead.reached(assignment.task, assignment.start)
                yield build_micro_batch(self.sources[assignment.task], assignment, self.schedule, self.shared)
