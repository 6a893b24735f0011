"""Which numbers of threads are measured, which one is taken, and when nothing is measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import pytest
import torch

import run.threads as module
from data.stream.schedule import Assignment
from parallel.mesh import Mesh
from run.config_file import load_config
from run.threads import CHOSEN, choose_threads
from tests.helpers.distributed import run_ranks

MICRO = [
    SimpleNamespace(batch=SimpleNamespace(to=lambda device: "batch"), assignment=Assignment(0, n, 0, 0))
    for n in range(3)
]
"""Stand-ins: nothing but the batch and its keys is looked at."""


@pytest.fixture
def measured(config, monkeypatch):
    """A start on so many cores, where a pass takes so many seconds with each number of threads -> (threads, passes, told)."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, now = torch.get_num_threads(), [0.0]

    def start(cores: int, seconds: dict[int, float], *overrides: str, mesh: Mesh | None = None):
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
        torch.set_num_threads(before)
        run, passes, told = load_config(config, ["threads=0", *overrides]), [], []
        run.folder.mkdir(parents=True, exist_ok=True)

        def network(batch, keys) -> None:
            passes.append(torch.get_num_threads())
            now[0] += seconds[torch.get_num_threads()]

        stream = choose_threads(run, iter(MICRO), network, mesh or Mesh(), 1, told.append)
        assert [micro.assignment.number for micro in stream] == [0, 1, 2]
        return torch.get_num_threads(), passes, told

    yield start
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ({1: 1.0, 2: 1.3}, 1),  # as a small network has it
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 0.97}, 1),  # not worth a core
        ({1: 1.0, 2: 0.8, 4: 0.79, 6: 0.5}, 6),
        ({1: 1.0, 2: 0.8, 4: 0.79, 5: 0.9}, 2),
    ],
)
def test_the_fewest_that_others_do_not_beat_are_taken(seconds, threads, measured):
    found, passes, told = measured(max(seconds), seconds)
    assert found == threads and passes == [number for number in seconds for _ in range(3)]
    assert told[0].startswith(f"threads: {threads} a rank (a pass forward with 1: 1000 ms, 2: ")


def test_a_later_start_keeps_what_the_first_one_found_on_as_many_cores(measured, config):
    assert measured(4, {1: 1.0, 2: 0.5, 4: 0.5})[0] == 2
    assert measured(4, {})[:2] == (2, [])
    assert measured(2, {1: 1.0, 2: 1.0})[0] == 1
    path = config.parent / "runs" / "tiny" / CHOSEN
    for damaged in ("{", "[]", json.dumps({"threads": 0, "cores": 2}), json.dumps({"threads": 9, "cores": 2})):
        path.write_text(damaged, encoding="utf-8")
        assert measured(2, {1: 1.0, 2: 0.1})[0] == 2


def test_nothing_is_measured_where_it_is_said_or_there_is_no_choice(measured, monkeypatch):
    assert measured(4, {}, "threads=3")[:2] == (3, [])
    assert measured(1, {})[:2] == (1, [])
    before = torch.get_num_threads()
    assert measured(4, {}, mesh=dataclasses.replace(Mesh(), device="cuda:0"))[:2] == (before, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert measured(4, {})[:2] == (before, [])


def of_ranks(rank: int, folder: str, known: bool) -> tuple[int, int]:
    """Rank 0 has four cores and rank 1 two, and is slow with two threads."""
    import os
    import pathlib

    from parallel.mesh import create_mesh

    os.environ.pop("OMP_NUM_THREADS", None)
    own = pathlib.Path(folder, str(rank))
    own.mkdir(exist_ok=True)
    if known and rank == 0:
        (own / CHOSEN).write_text('{"threads": 2, "cores": 4}', encoding="utf-8")
    clock = itertools.count()
    slow = iter((1, 1, 1, 5, 5, 5) if rank else (4, 4, 4, 1, 1, 1))
    now, passes = [0.0], []

    def network(batch, keys) -> None:
        passes.append(next(clock))
        now[0] += next(slow)

    mesh = create_mesh()
    module.usable_cores, module.time = lambda: (4, 2)[rank], SimpleNamespace(perf_counter=lambda: now[0])
    run = SimpleNamespace(threads=0, folder=own, seed=0)
    choose_threads(run, iter(MICRO), network, mesh, 1, lambda line: None)
    return torch.get_num_threads(), len(passes)


def test_all_ranks_measure_the_same_numbers_by_the_slowest(tmp_path):
    """1: 4 s, as rank 0 takes, 2: 5 s, as rank 1 takes."""
    assert run_ranks(2, of_ranks, str(tmp_path), False) == [(1, 6)] * 2


def test_where_one_rank_knows_none_measures(tmp_path):
    assert run_ranks(2, of_ranks, str(tmp_path), True) == [(2, 0), (2, 0)]
