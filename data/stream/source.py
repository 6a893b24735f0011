"""Tasks bound to their data sets, with one vocabulary for all."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

from data.config import DataConfig, Frames
from data.shards import DatasetError, DatasetInfo, ShardSet, read_info
from data.stream.order import EpochOrder
from data.stream.part import PartOrder, order_of
from data.tasks import Task, TaskContext, kind_of, make_task
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from data.transport import Cache


@dataclasses.dataclass(frozen=True)
class Source:
    """One task bound to its shards."""

    task: Task
    shards: ShardSet
    order: EpochOrder | PartOrder

    @property
    def name(self) -> str:
        return self.task.config.name

    @property
    def digest(self) -> str:
        """A few characters that follow from the samples and their order, and not from where the shards lie."""
        info = self.task.context.info
        return self.shards.listed.digest(info.kind, info.classes, info.synonyms)


def read_vocabulary(config: DataConfig) -> Vocabulary:
    """The run's vocabulary: all of CLIP's, or the union of what the run's data sets use."""
    tokenizer = Tokenizer.load()
    if config.vocabulary == "full":
        return Vocabulary.full(tokenizer)
    infos = [read_info(task.path) for task in config.tasks]
    return Vocabulary.restricted(tokenizer, itertools.chain.from_iterable(info.token_ids for info in infos))


@dataclasses.dataclass(frozen=True)
class OpenData:
    """The sources of all tasks, in the order of the configuration, and the vocabulary that they share."""

    vocabulary: Vocabulary
    sources: list[Source]

    @property
    def infos(self) -> dict[str, DatasetInfo]:
        """What the data set of each task is."""
        return {source.name: source.task.context.info for source in self.sources}

    @property
    def digests(self) -> dict[str, str]:
        """By task, and of a part by `shots` or `fraction` which samples it has: those follow from labels, which the first does not see."""
        parts = {f"{source.name}, its part": source.order for source in self.sources}
        chosen = {name: order.digest for name, order in parts.items() if isinstance(order, PartOrder)}
        return {source.name: source.digest for source in self.sources} | chosen


def open_data(
    config: DataConfig, pixels: Pixels, seed: int, vocabulary: Vocabulary | None = None, frames: Frames = "as-is"
) -> OpenData:
    """Bind every task to its data set; vocabulary: of an earlier run, in place of the one that follows from the data sets; frames: of
    clips, in evaluation.

    Batch sizes of token budgets are filled in. Raises DatasetError, which names the task and the folder, and VocabularyFileError.
    """
    vocabulary = vocabulary or read_vocabulary(config)
    return OpenData(vocabulary, _open_sources(config, vocabulary, pixels, seed, frames))


def _open_sources(
    config: DataConfig, vocabulary: Vocabulary, pixels: Pixels, seed: int, frames: Frames
) -> list[Source]:
    cache = Cache(Path(os.path.expanduser(config.cache_dir)), int(config.cache_gib * (1 << 30)))
    sources = []
    for number, task_config in enumerate(config.tasks):
        info: DatasetInfo = read_info(task_config.path)
        patches = (pixels.image_size // pixels.patch) ** 2
        task_config = kind_of(task_config).with_batch_size(task_config, patches, info.kind.startswith("video"))
        if task_config.shards:
            shards = ShardSet.from_urls(task_config.shards, cache, config.allow_pipe)
        else:
            shards = ShardSet.open(task_config.path, task_config.split, cache)
        context = TaskContext(task_config, info, vocabulary, pixels, config.vocabulary_sample, config.word_end, frames)
        order = order_of(task_config, info, shards, _mix(seed, number), seed, config.shuffle_window)
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


def _mix(seed: int, number: int) -> int:
    return seed * 1009 + number
