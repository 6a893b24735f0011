"""One exact pass over a data set for evaluation: every sample once, whatever the number of ranks and workers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pickle
from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from data.shards import BadSample
from data.stream.faults import Fault, fault_of
from data.stream.order import EpochOrder
from data.stream.share import Share
from data.stream.source import Source
from data.transport import Ahead
from data.workers.loader import loader_of
from data.workers.to_device import ahead


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Examples of one task. valid: False for those that only fill up the batch; places: theirs among all samples of the split; faults: of
    what was left out."""

    examples: list
    valid: tuple[bool, ...]
    places: tuple[int, ...]
    faults: tuple[Fault, ...]


def evaluation_pass(
    source: Source,
    batch_size: int,
    limit: int | None = None,
    share: Share | None = None,
    workers: int = 0,
    places: np.ndarray | None = None,
) -> Iterator[EvaluationBatch]:
    """This rank's part of every sample once, in order, without augmentation. Bad ones are reported and left out.

    places: of the samples that are wanted, rising and counted over all shards, in place of all of them or of `limit` (`spread`).

    Batch k of rank r is batch k * ranks + r of the whole: samples [n * batch_size, (n + 1) * batch_size). Every rank gets the same
    number of batches; where the samples end, they begin anew and are not valid. So the batches are those of a single rank, whose
    last one is filled up as well. A batch is never larger than all samples together.
    """
    if places is None:
        places = spread(int(source.order.sizes.sum()), limit)
    if not len(places):
        return
    dataset = _Pass(source, min(batch_size, len(places)), places, share or Share())
    if not workers:  # a thread decodes the next batch while this one is computed
        yield from ahead(iter(dataset), _same, _same, depth=1)
        return
    # As bytes, which go through a pipe: torch would send each tensor through /dev/shm, which is small in containers.
    yield from map(pickle.loads, loader_of(dataset, workers, pickle.dumps))


def _same(batch: EvaluationBatch) -> EvaluationBatch:
    return batch


def spread(total: int, limit: int | None) -> np.ndarray:
    """Rising places of `limit` of so many samples, of all where None: one of each of as many equal parts, drawn, so that neither samples
    sorted by class nor classes that take turns leave one out. The same for every run and on every layout."""
    if limit is None or limit >= total:
        return np.arange(total)
    ends = np.arange(limit + 1) * total // limit
    return np.random.default_rng(0).integers(ends[:-1], ends[1:])


def places_of(source: Source) -> np.ndarray:
    """Rising places, counted over all shards, of the samples that training on this source has: all, or those that `shots` and `fraction`
    choose."""
    order = source.order
    if isinstance(order, EpochOrder):
        return np.arange(order.total)
    starts = np.cumsum(order.sizes) - order.sizes
    found = (order.locate(position) for position in range(order.total))
    return np.sort(np.array([starts[shard] + index for shard, index in found], dtype=np.int64))


class _Pass(IterableDataset):
    def __init__(self, source: Source, batch_size: int, places: np.ndarray, share: Share) -> None:
        self.source, self.batch_size, self.places, self.share = source, batch_size, places, share
        self.ends = np.cumsum(source.order.sizes)
        self.shards, self.firsts = np.unique(np.searchsorted(self.ends, places, side="right"), return_index=True)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        worker = get_worker_info()
        return self.part(worker.id, worker.num_workers) if worker else self.part(0, 1)

    def part(self, worker: int, workers: int) -> Iterator[EvaluationBatch]:
        """What one worker process builds."""
        batches = -(-len(self.places) // self.batch_size)
        with contextlib.closing(Ahead()) as ahead:
            for number in range(worker, -(-batches // self.share.count), workers):
                yield self._batch(number * self.share.count + self.share.index, ahead)

    def _batch(self, number: int, ahead: Ahead) -> EvaluationBatch:
        examples, valid, places, faults = [], [], [], []
        source, total = self.source, len(self.places)
        for sample in range(number * self.batch_size, (number + 1) * self.batch_size):
            place = int(self.places[sample % total])
            shard = int(np.searchsorted(self.ends, place, side="right"))
            index = place - int(self.ends[shard] - source.order.sizes[shard])
            number_of_shard = int(np.searchsorted(self.shards, shard))
            if source.shards.is_remote and sample == self.firsts[number_of_shard]:
                following = self.shards[number_of_shard + 1 : number_of_shard + 3].tolist()
                ahead.want([functools.partial(source.shards.fetch, other) for other in following])
            try:
                examples.append(source.task.example(source.shards.read(shard, index), None))
                valid.append(sample < total)
                places.append(place)
            except BadSample as error:
                if sample < total:
                    faults.append(fault_of(source, shard, index, error))
        return EvaluationBatch(examples, tuple(valid), tuple(places), tuple(faults))
