"""How fast samples become micro-batches: reading alone, webdataset's own pipeline, ours, and decoding alone; one table.

`python -m benchmarks.data --data FOLDER` takes photos and clips from the folder, also out of tars in it; without one they are
made. They are repeated into shards in a temporary folder. All ways share one decoding (the classification task's: decode, crop
to 224 pixels, cut into patches, join) and the number of worker processes:

    read        the tar files from start to end, nothing else
    webdataset  WebDataset(...).shuffle(...).map(...).batched(...) in a DataLoader: approximate order, no position to resume
    ours        data.stream.training_stream: exact order, faults replaced and reported, resumable
    decode      the same samples, already in the workers' memory; their batches are thrown away

They take turns in rounds; ratios are those within a round, since times of different minutes do not compare. CPU time is that
of all processes: it says what a way costs where the clock cannot, on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.batch import TaskBatch
from data.config import DataConfig, TaskConfig
from data.decode.video import encode_mp4
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.share import Share
from data.stream.source import Source, open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels, Task
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS
from data.workers.loader import worker_context
from data.workers.processes import keep_freed_memory
from run.command_line import Several

WAYS = ("read", "webdataset", "ours", "decode")
SHARDS, CHUNK = 4, 1 << 20


@dataclasses.dataclass(frozen=True)
class Size:
    """samples of a set (an epoch), samples per micro-batch, frames of a clip, side of the square in pixels."""

    samples: int
    batch: int
    frames: int = 8
    side: int = 224


def found(folder: Path, extensions: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """(extension, content) of the files with one of these extensions in the folder and in its tars."""
    items = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                named = [(member.name, tar.extractfile(member).read()) for member in tar if member.isreg()]
        elif path.suffix[1:].lower() in extensions:
            named = [(path.name, path.read_bytes())]
        else:
            continue
        suffixes = ((name.rpartition(".")[2].lower(), content) for name, content in named)
        items += [(suffix, content) for suffix, content in suffixes if suffix in extensions]
    return items


def made_images(count: int = 12) -> list[tuple[str, bytes]]:
    """Clouds of 640 x 480 pixels as JPEG."""
    items = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        items.append(("jpg", buffer.getvalue()))
    return items


def made_clips(count: int = 5) -> list[tuple[str, bytes]]:
    """Clouds that drift: 100 frames of 320 x 240 pixels as H.264."""
    items = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        cloud = np.asarray(Image.fromarray(coarse).resize((480, 320), Image.Resampling.BICUBIC))
        frames = np.stack([cloud[t // 2 : t // 2 + 240, t : t + 320] for t in range(100)])
        items.append(("mp4", encode_mp4(frames, 25)))
    return items


def write_set(folder: Path, kind: str, items: list[tuple[str, bytes]], size: Size) -> Source:
    """The items in turn until there are enough, as a data set; bound to its task."""
    samples = (
        {"__key__": f"{number:06d}", extension: content, "cls": number % 2}
        for number, (extension, content) in enumerate(itertools.islice(itertools.cycle(items), size.samples))
    )
    shards = write_shards(folder, "train", samples, -(-size.samples // SHARDS))
    splits = {"train": SplitInfo(size.samples, len(shards))}
    write_info(folder, DatasetInfo(kind=kind, classes=("red", "blue"), token_ids=(736, 1746, 49407), splits=splits))
    task = TaskConfig(
        name=kind, kind="classification", path=str(folder), batch_size=size.batch, num_frames=size.frames, max_text=8,
        crop_scale=(0.6, 1.0), flip=True,
    )  # fmt: skip
    config = DataConfig(tasks=(task,), vocabulary="restricted")
    return open_data(config, Pixels(size.side, 16), seed=0).sources[0]


def example(task: Task, sample: dict[str, Any]) -> Any:
    return task.example(sample, np.random.default_rng())


def joined(task: Task, examples: list[Any]) -> TaskBatch:
    return task.batch(examples, np.random.default_rng())


def read(source: Source, workers: int) -> Iterator[int]:
    """Bytes of one pass over the files, a MiB at a time; it is one process that reads, whatever `workers` is."""
    for path in source.shards.paths:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield len(chunk)


def webdataset(source: Source, workers: int) -> Iterator[TaskBatch]:
    task = source.task
    pipeline = (
        wds.WebDataset([str(path) for path in source.shards.paths], shardshuffle=SHARDS, empty_check=False)
        .shuffle(100)
        .map(functools.partial(example, task))
        .batched(task.config.batch_size, collation_fn=functools.partial(joined, task), partial=False)
        .repeat()
    )
    yield from loader(pipeline, workers)


def ours(source: Source, workers: int) -> Iterator[Any]:
    schedule = schedule_of(DataConfig(tasks=(source.task.config,)), micro_batches=1, seed=0)
    yield from training_stream([source], schedule, Share(), 0, (0,), workers)


class Decoding(IterableDataset):
    """The number of samples of each batch, after making it out of samples in memory; with the allocator set as ours sets it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self) -> Iterator[int]:
        keep_freed_memory()
        shards, task = self.source.shards, self.source.task
        worker = get_worker_info()
        places = [(shard, index) for shard, size in enumerate(shards.sizes) for index in range(size)]
        samples = [shards.read(*place) for place in places[worker.id :: worker.num_workers]]
        for batch in batches(itertools.cycle(samples), task.config.batch_size):
            joined(task, [example(task, sample) for sample in batch])
            yield len(batch)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def decode(source: Source, workers: int) -> Iterator[int]:
    yield from loader(Decoding(source), workers)


def loader(dataset: IterableDataset, workers: int) -> DataLoader:
    return DataLoader(
        dataset, batch_size=None, num_workers=workers, prefetch_factor=4, multiprocessing_context=worker_context()
    )


def measure(way: Callable[[Source, int], Iterator[Any]], source: Source, workers: int) -> tuple[float, float]:
    """(samples/s, milliseconds of all processes' CPU time a sample) over one epoch, after the first batch of every worker:
    starting them does not count."""
    running = way(source, workers)
    steps: Iterable[Any] = running
    samples = sum(source.shards.sizes)
    if way is not read:
        samples -= samples % source.task.config.batch_size
        for _ in range(workers):
            next(running)
        steps = itertools.islice(running, samples // source.task.config.batch_size)
    cpu, start = cpu_seconds(), time.perf_counter()
    for _ in steps:
        pass
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    running.close()
    return samples / seconds, 1000 * cpu / samples


def cpu_seconds() -> float:
    """Of this process and those below it that live."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


def table(name: str, source: Source, workers: int, rounds: list[dict[str, tuple[float, float]]]) -> str:
    """Ratios are medians of the ratios within a round."""
    sample_mb = sum(path.stat().st_size for path in source.shards.paths) / sum(source.shards.sizes) / 1e6
    lines = [
        f"{name}, {workers} worker(s), {sample_mb:.3f} MB a sample, median of {len(rounds)} rounds",
        f"  {'':<12}{'samples/s':>11}{'MB/s':>9}{'x webdataset':>14}{'from - to':>14}{'x decode':>10}{'from - to':>14}"
        f"{'CPU ms':>9}{'x decode':>10}",
    ]
    for way in WAYS:
        speed, cpu = (statistics.median(one[way][column] for one in rounds) for column in (0, 1))
        line = f"  {way:<12}{speed:>11.1f}{speed * sample_mb:>9.1f}"
        for other, width in (("webdataset", 14), ("decode", 10)):
            ratios = [one[way][0] / one[other][0] for one in rounds]
            shown = f"{statistics.median(ratios):>{width}.3f}{min(ratios):>8.2f} -{max(ratios):>5.2f}"
            line += " " * (width + 14) if way == "read" else shown
        cpu_ratio = statistics.median(one[way][1] / one["decode"][1] for one in rounds)
        lines.append(f"{line}{cpu:>9.2f}{cpu_ratio:>10.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with photos and clips; default: made ones")
    parser.add_argument("--workers", type=int, nargs="+", action=Several, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=480, help="samples of the set of images")
    parser.add_argument("--clips", type=int, default=60, help="samples of the set of clips")
    parser.add_argument("--side", type=int, default=224, help="pixels of the square that the model sees")
    options = parser.parse_args()
    images = found(options.data, IMAGE_KEYS) if options.data else made_images()
    clips = found(options.data, VIDEO_KEYS) if options.data else made_clips()
    ways = {"read": read, "webdataset": webdataset, "ours": ours, "decode": decode}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, items, size in (
            ("images", "image_class", images, Size(options.images, min(16, options.images // 4), side=options.side)),
            ("clips", "video_class", clips, Size(options.clips, min(4, options.clips // 4), side=options.side)),
        ):
            if not items:
                print(f"{name}: none in {options.data}")
                continue
            source = write_set(Path(folder) / name, kind, items, size)
            for workers in options.workers:
                rounds = [
                    {way: measure(run, source, workers) for way, run in ways.items()} for _ in range(options.rounds)
                ]
                print(table(name, source, workers, rounds), flush=True)


if __name__ == "__main__":
    main()
