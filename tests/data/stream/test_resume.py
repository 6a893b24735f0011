"""Resume: what is left after a kill is the same for every number of ranks and workers, without repeats and gaps."""

from __future__ import annotations

import collections
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import psutil
import pytest
from hypothesis import strategies as st

from data.shards import ShardSet, write_shard, write_shard_list
from data.stream.order import EpochOrder
from data.stream.schedule import Schedule
from data.stream.share import Share
from data.stream.source import Source
from data.stream.training import _Stream
from tests.helpers.limits import within
from tests.helpers.runs import ROOT
from tests.helpers.streams import labels, numbered, streamed, write_numbered


class Keys:
    """A task whose examples are the keys of the samples."""

    config = SimpleNamespace(name="keys")

    def example(self, sample, generator):
        return int(sample["__key__"])

    def batch(self, examples, generator):
        counted = SimpleNamespace(counts=0)
        batch = SimpleNamespace(ids=examples, inputs=counted, candidates=counted)
        batch.located = lambda: batch
        return batch


def keyed_source(folder: str, sizes: list[int], seed: int, window: int) -> Source:
    first = 0
    for shard, size in enumerate(sizes):
        write_shard(
            Path(folder) / f"train-{shard:06d}.tar", ({"__key__": str(first + i), "txt": ""} for i in range(size))
        )
        first += size
    write_shard_list(folder, "train")
    shards = ShardSet.open(folder, "train")
    return Source(Keys(), shards, EpochOrder(shards.sizes, seed, window))  # type: ignore[arg-type]


def run(sources, schedule: Schedule, ranks: int, workers: int, start: int, stop: int, consumed) -> list[tuple]:
    """(task, step, number, ids) of the steps [start, stop), as ranks with so many workers build them, in the order of numbers."""
    found = []
    for rank in range(ranks):
        stream = _Stream(sources, schedule, Share(rank, ranks), start, consumed)
        parts = [stream.part(worker, workers) for worker in range(workers)]
        for number in range(
            (stop - start) * schedule.micro_batches // ranks
        ):  # torch's loader asks its workers in turn
            micro = next(parts[number % workers])
            found.append(
                (micro.assignment.task, micro.assignment.step, micro.assignment.number, tuple(micro.batch.ids))
            )
    return sorted(found, key=lambda item: item[1:3])


SIZES = st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    sizes=st.tuples(SIZES, SIZES),
    batch_sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    window=st.integers(1, 12),
    before=st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 3)),
    after=st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 3)),
    kill=st.integers(0, 6),
    seed=st.integers(0, 99),
    draw=st.sampled_from(["mixed", "same"]),
)
def test_any_layout_goes_on_exactly(sizes, batch_sizes, window, before, after, kill, seed, draw):
    steps = 7
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / str(task) for task in range(2)]
        for folder in folders:
            folder.mkdir()
        sources = [
            keyed_source(str(f), s, seed + n, window) for n, (f, s) in enumerate(zip(folders, sizes, strict=True))
        ]
        schedule = Schedule((2.0, 1.0), batch_sizes, micro_batches=4, seed=seed, draw=draw)
        whole = run(sources, schedule, 1, 1, 0, steps, (0, 0))

        # Until the kill in one layout, from the last checkpoint on in another.
        first = run(sources, schedule, *before, 0, kill, (0, 0))
        consumed = (0, 0)
        for step in range(kill):
            _, consumed = schedule.step(step, consumed)
        rest = run(sources, schedule, *after, kill, steps, consumed)
        assert first + rest == whole

        # No repeats and no gaps: epoch after epoch, each task's stream is a permutation of its data.
        for task, own in enumerate(sizes):
            ids = [i for t, _, _, batch in first + rest if t == task for i in batch]
            total = sum(own)
            for start in range(0, len(ids), total):
                epoch = ids[start : start + total]
                assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(total))
                assert len(epoch) < total or set(epoch) == set(range(total))


def test_epochs_are_different_permutations():
    with tempfile.TemporaryDirectory() as folder:
        source = keyed_source(folder, [20, 20, 20], 1, 16)
        schedule = Schedule((1.0,), (5,), micro_batches=4, seed=1)
        epochs = [
            [i for _, _, _, ids in run([source], schedule, 2, 2, 3 * n, 3 * n + 3, (60 * n,)) for i in ids]
            for n in range(3)
        ]
        assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3


REST = 24
"""Micro-batches after the kill. How many come before it is a matter of how fast the machine is."""


@pytest.mark.slow
def test_two_killed_ranks_with_workers_go_on_as_one(tmp_path):
    """Processes with real workers, killed with -9 in mid-stream; nothing of them stays; then one rank with three workers."""
    write_numbered(tmp_path / "set", (17, 5, 0, 30, 11))

    def start(rank: int, ranks: int, workers: int, step: int, consumed: int) -> tuple[subprocess.Popen, Path]:
        out = tmp_path / f"{ranks}-{rank}.jsonl"
        words = [tmp_path / "set", rank, ranks, workers, step, consumed, out]
        return subprocess.Popen([sys.executable, "-m", "tests.helpers.streams", *map(str, words)], cwd=ROOT), out

    def records(out: Path) -> list:
        return [json.loads(line) for line in out.read_text().splitlines() if line.endswith("]")] if out.exists() else []

    with within(150):
        pairs = [start(rank, 2, 2, 0, 0) for rank in range(2)]
        while any(len(records(out)) < 7 for _, out in pairs):
            assert all(process.poll() is None for process, _ in pairs)
            time.sleep(0.005)
        children = [c for process, _ in pairs for c in psutil.Process(process.pid).children(recursive=True)]
        assert len(children) >= 4
        for process, _ in pairs:
            process.send_signal(signal.SIGKILL)
            process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, f"left behind: {alive}"

        # The last step that both ranks finished is the checkpoint; two micro-batches a rank and step, three samples each.
        done = min(len(records(out)) for _, out in pairs) // 2
        before = sorted(record for _, out in pairs for record in records(out) if record[0] < done)
        process, out = start(0, 1, 3, done, done * 4 * 3)
        while len(records(out)) < REST:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
    after = records(out)[:REST]
    whole = labels(streamed(numbered(str(tmp_path / "set")), 4 * done + REST, micro_batches=4))
    assert done >= 3 and [label for _, _, ids in before + after for label in ids] == whole
    assert max(collections.Counter(whole[:63]).values()) == 1  # the first epoch
