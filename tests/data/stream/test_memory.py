"""Memory of trainer and workers over epochs: the order is drawn, not buffered, so nothing grows."""

from __future__ import annotations

import gc
import itertools
import os
import time

import numpy as np
import psutil
import pytest

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.share import Share
from data.stream.source import open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer
from tests.helpers.limits import within
from tests.helpers.streams import SEED

SAMPLES, BATCH, EPOCHS = 4000, 16, 4
FLAT = 1.05


def resident() -> list[int]:
    """Bytes of this process and of its workers, in the order of their starts."""
    own = psutil.Process(os.getpid())
    workers = [p for p in own.children(recursive=True) if "forkserver" in " ".join(p.cmdline())]
    return [p.memory_info().rss for p in [own, *sorted(workers, key=lambda p: p.pid)]]


@pytest.mark.slow
def test_memory_is_flat_over_epochs(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [encode_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(64)]
    samples = ({"__key__": f"{i:05d}", "png": pictures[i % 64], "cls": i % 2} for i in range(SAMPLES))
    shards = write_shards(tmp_path, "train", samples, samples_per_shard=100)
    classes = ("red", "blue")
    tokens = tuple(sorted({49407, *itertools.chain.from_iterable(map(Tokenizer.load().encode, classes))}))
    info = DatasetInfo(
        kind="image_class", classes=classes, token_ids=tokens, splits={"train": SplitInfo(SAMPLES, len(shards))}
    )
    write_info(tmp_path, info)
    task = TaskConfig(name="t", kind="classification", path=str(tmp_path), batch_size=BATCH, max_text=4)
    data = DataConfig(tasks=(task,), vocabulary="restricted", shuffle_window=1000)
    sources = open_data(data, Pixels(32, 8), SEED).sources
    schedule = schedule_of(data, 1, SEED, sources)
    with within(300):
        stream = iter(training_stream(sources, schedule, Share(), 0, (0,), workers=2))
        sizes = []
        for _ in range(EPOCHS):
            for _ in range(SAMPLES // BATCH):
                assert not next(stream).faults
            gc.collect()
            sizes.append(resident())
        pids = [p.pid for p in psutil.Process(os.getpid()).children(recursive=True)]
        print(
            [[size >> 20 for size in epoch] for epoch in sizes],
            "MiB after each epoch: trainer, fork server and workers",
        )
        assert all(len(epoch) >= 3 for epoch in sizes)
        for process, first in enumerate(sizes[0]):
            assert max(epoch[process] for epoch in sizes[1:]) <= FLAT * first, (process, sizes)
        del stream
        gc.collect()
        deadline = time.monotonic() + 20
        while (
            time.monotonic() < deadline and sum(map(psutil.pid_exists, pids)) > 2
        ):  # fork server and resource tracker stay
            time.sleep(0.1)
        assert sum(map(psutil.pid_exists, pids)) <= 2, "workers are left"
