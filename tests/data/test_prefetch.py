"""Batches ahead of the step: order, errors, the end; how many workers."""

from __future__ import annotations

import itertools
import os
import threading
import time

import pytest
import torch

from data import prefetch
from data.packing import pack
from data.prefetch import CudaCopy, ahead, handed_over, usable_cores, worker_count


def test_on_the_cpu_batches_pass_as_they_are():
    batch = {"x": torch.ones(3)}
    first, second = handed_over(iter([batch, pack(batch)]), "cpu")
    assert first is batch and torch.equal(second["x"], batch["x"])
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_every_item_once_and_in_order():
    started = []
    got = list(
        ahead(iter(range(50)), lambda n: started.append((n, threading.current_thread().name)) or n, lambda n: -n)
    )
    assert got == [-n for n in range(50)]
    assert started == [(n, "prefetch") for n in range(50)]


def test_it_runs_ahead_but_not_far():
    taken = []
    items = ahead((taken.append(n) or n for n in itertools.count()), lambda n: n, lambda n: n, depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert taken == [0, 1, 2, 3], "one was given out, two lie ready, one waits for a place"
    items.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("where", ["source", "copy"])
def test_errors_reach_the_one_who_asks(where):
    def source():
        yield 1
        yield 2
        if where == "source":
            raise OSError("on purpose")
        yield 3

    def start(number):
        if number == 3:
            raise OSError("on purpose")
        return number

    items = ahead(source(), start, lambda n: n)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="on purpose"):
        next(items)


def test_copies_start_in_the_thread_and_end_with_the_step(monkeypatch):
    """The CUDA branch with a copy that is none: what it is given and where."""
    threads = []

    class Copy:
        def __init__(self, device):
            assert device == "cuda:1"

        def start(self, packed):
            threads.append(threading.current_thread())
            return packed

        def finish(self, packed):
            threads.append(threading.current_thread())
            return packed

    monkeypatch.setattr(prefetch, "CudaCopy", Copy)
    batches = [pack({"x": torch.full((2,), float(n))}) for n in range(3)]
    assert [batch["x"].tolist() for batch in handed_over(iter(batches), "cuda:1")] == [[n, n] for n in range(3)]
    assert threads.count(threading.main_thread()) == 3 and len(threads) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_copies_to_a_cuda_device():
    batches = [{"x": torch.full((1 << 20,), float(n)), "y": torch.arange(n + 1)} for n in range(8)]
    there = list(handed_over(map(pack, batches), "cuda:0"))
    for batch, copy in zip(batches, there, strict=True):
        assert copy["x"].device == torch.device("cuda:0")
        assert torch.equal(copy["x"].cpu(), batch["x"]) and torch.equal(copy["y"].cpu(), batch["y"])
    assert CudaCopy("cuda:0").stream != torch.cuda.current_stream()


@pytest.mark.parametrize(
    "cores, ranks, workers", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 2, 3), (16, 1, 8), (96, 8, 8), (64, 8, 7)]
)
def test_the_number_of_workers_follows_from_the_cores(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr(prefetch, "usable_cores", lambda: cores)
    assert worker_count("auto", ranks) == workers
    assert worker_count(5, ranks) == 5 and worker_count(0, ranks) == 0


def test_containers_limit_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert usable_cores(tmp_path) == 6
    limit = tmp_path / "cpu.max"
    for content, cores in (
        ("max 100000", 6),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("900000 100000", 6),
        ("?", 6),
    ):
        limit.write_text(content)
        assert usable_cores(tmp_path) == cores, content
    limit.unlink()
    (tmp_path / "cpu").mkdir()
    for quota, cores in ((-1, 6), (300000, 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert usable_cores(tmp_path) == cores
