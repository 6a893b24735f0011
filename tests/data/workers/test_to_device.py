"""Batches ahead of the step: order, errors, the end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch

from data.workers import to_device as prefetch
from data.workers.packing import pack
from data.workers.to_device import CudaCopy, ahead, handed_over


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
def test_copies_to_a_cuda_device():
    batches = [{"x": torch.full((1 << 20,), float(n)), "y": torch.arange(n + 1)} for n in range(8)]
    there = list(handed_over(map(pack, batches), "cuda:0"))
    for batch, copy in zip(batches, there, strict=True):
        assert copy["x"].device == torch.device("cuda:0")
        assert torch.equal(copy["x"].cpu(), batch["x"]) and torch.equal(copy["y"].cpu(), batch["y"])
    assert CudaCopy("cuda:0").stream != torch.cuda.current_stream()
