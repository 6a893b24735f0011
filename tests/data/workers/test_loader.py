"""Worker processes of a rank: how many, and what is said when one is gone."""

from __future__ import annotations

import os
import signal

import pytest
from torch.utils.data import IterableDataset

from data.workers import loader
from data.workers.loader import WorkerGoneError, loader_of, usable_cores, worker_count
from run.errors import exit_code


class Killed(IterableDataset):
    """Its worker is gone after the second item."""

    def __iter__(self):
        yield from range(2)
        os.kill(os.getpid(), signal.SIGKILL)
        yield from iter(int, 1)


class Broken(IterableDataset):
    def __iter__(self):
        yield 1
        raise RuntimeError("a fault of ours")


def test_a_worker_that_is_killed_is_one_line():
    batches = loader_of(Killed(), 1)
    with pytest.raises(
        WorkerGoneError, match=r"killed from outside, or for want of memory.*fewer workers .data.workers"
    ) as caught:
        list(batches)
    assert "\n" not in str(caught.value) and exit_code(caught.value) == 1


def test_another_error_of_a_worker_stays_what_it_is():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(loader_of(Broken(), 1))


@pytest.mark.parametrize(
    "cores, ranks, workers", [(1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 2, 3), (16, 1, 8), (96, 8, 8), (64, 8, 7)]
)
def test_the_number_of_workers_follows_from_the_cores(monkeypatch, cores, ranks, workers):
    monkeypatch.setattr(loader, "usable_cores", lambda: cores)
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
