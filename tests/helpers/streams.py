"""Image data sets in which every sample is a class of its own, so that labels tell which samples came; and a program that records
them while it is killed: `python -m tests.helpers.streams FOLDER RANK RANKS WORKERS START CONSUMED OUT`."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, read_info, write_info, write_shard, write_shard_list
from data.stream.micro_batch import MicroBatch
from data.stream.share import Share
from data.stream.source import Source, open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary

LETTERS = "abcdefghijklmnop"
SEED, SLOTS = 7, 4


def write_numbered(folder: Path, sizes: tuple[int, ...]) -> None:
    """Shards of these sizes; sample i of all has the key i and the class i."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        samples = [
            {"__key__": f"{i:05d}", "png": encode_png(np.full((8, 8, 3), i % 256, np.uint8)), "cls": i}
            for i in itertools.islice(numbers, size)
        ]
        write_shard(folder / f"train-{shard:06d}.tar", samples)
    write_shard_list(folder, "train")
    write_numbered_info(folder, sum(sizes), len(sizes))


def write_numbered_info(folder: Path, samples: int, shards: int) -> None:
    classes = tuple("".join(LETTERS[(i >> shift) % 16] for shift in (8, 4, 0)) for i in range(samples))
    tokens = sorted({49407, *itertools.chain.from_iterable(map(tokenizer().encode, classes))})
    info = DatasetInfo(
        kind="image_class", classes=classes, token_ids=tuple(tokens), splits={"train": SplitInfo(samples, shards)}
    )
    write_info(folder, info)


def numbered(path: str, batch_size: int = 3, shards: tuple[str, ...] = (), **options) -> DataConfig:
    task = TaskConfig(
        name="numbers", kind="classification", path=path, batch_size=batch_size, max_text=4, shards=shards
    )
    return DataConfig(tasks=(task,), vocabulary="restricted", **({"shuffle_window": 8} | options))


@functools.cache
def tokenizer() -> Tokenizer:
    """Read once: it takes a third of a second."""
    return Tokenizer.load()


def opened(data: DataConfig) -> Source:
    ids = itertools.chain.from_iterable(read_info(task.path).token_ids for task in data.tasks)
    return open_data(data, Pixels(8, 4), SEED, Vocabulary.restricted(tokenizer(), ids)).sources[0]


def streamed(
    data: DataConfig,
    number: int,
    start: int = 0,
    consumed: int = 0,
    workers: int = 0,
    micro_batches: int = 1,
    source: Source | None = None,
) -> list[MicroBatch]:
    source = source or opened(data)
    schedule = schedule_of(data, micro_batches, SEED, [source])
    return list(itertools.islice(training_stream([source], schedule, Share(), start, (consumed,), workers), number))


def labels(micros: list[MicroBatch]) -> list[int]:
    return [label for micro in micros for label in micro.batch.labels_Q.tolist()]


def main() -> None:
    folder, rank, ranks, workers, start, consumed, out = sys.argv[1:]
    data = numbered(folder)
    source = opened(data)
    schedule = schedule_of(data, SLOTS, SEED, [source])
    share = Share(int(rank), int(ranks))
    with open(out, "a", buffering=1) as file:
        for micro in training_stream([source], schedule, share, int(start), (int(consumed),), int(workers)):
            file.write(
                json.dumps([micro.assignment.step, micro.assignment.number, micro.batch.labels_Q.tolist()]) + "\n"
            )


if __name__ == "__main__":
    main()
