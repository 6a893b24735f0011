"""Beside a run that this process pretends to be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clusters.store.follow import Claim, follow
from clusters.store.place import StoreError
from clusters.store.stored import all_stored
from clusters.store.upload import Upload
from parallel.health.claim import IN_USE, FolderClaim
from tests.clusters.store.made import Watched, add_step, made_run


@pytest.fixture
def run(tmp_path) -> Path:
    return made_run(tmp_path / "run", (1,))


@pytest.fixture
def place(tmp_path) -> Watched:
    return Watched(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("clusters.store.follow.POLL_S", 0.02)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def steps(place: Watched) -> list[int]:
    return [stored.step for stored in all_stored(place) if not stored.problem]


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_uploads_what_comes_until_the_run_has_ended(run, place):
    """The last checkpoint comes just before the end."""
    told: list[str] = []

    def train() -> None:
        time.sleep(0.1)
        claim = FolderClaim(run)
        until(lambda: steps(place) == [1])
        add_step(run, 2)
        until(lambda: steps(place) == [2, 1])
        add_step(run, 3)
        claim.release()

    thread = threading.Thread(target=train)
    thread.start()
    assert follow(Upload(run, place, 0, told.append), 0.02, 10)
    thread.join()
    assert steps(place) == [3, 2, 1] and not [line for line in told if "warning" in line]


def test_a_dead_store_is_told_and_tried_again(run, place):
    told: list[str] = []
    claim = FolderClaim(run)
    place.finds_fail = 2

    def end() -> None:
        until(lambda: place.finds_fail == 0 and steps(place) == [1])
        claim.release()

    thread = threading.Thread(target=end)
    thread.start()
    assert follow(Upload(run, place, 0, told.append), 0.02, 10)
    thread.join()
    assert [line for line in told if line.startswith("warning: the store is dead; the training goes on")]


def test_a_store_that_stays_dead_is_given_up_after_the_end(run, place):
    place.finds_fail = 10**9
    start = time.monotonic()
    with pytest.raises(StoreError, match="the store is dead"):
        follow(Upload(run, place, 0, lambda line: None), 0.02, 0.5)
    assert time.monotonic() - start < 5


def test_a_run_that_was_killed_has_ended(run, place):
    claim = FolderClaim(run)
    assert Claim(run).is_held()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    holder = json.loads((run / IN_USE).read_text()) | {"pid": child.pid}
    (run / IN_USE).write_text(json.dumps(holder))
    assert not Claim(run).is_held()
    (run / IN_USE).unlink()
    claim.release()


def test_a_run_elsewhere_that_is_silent_has_ended(run, monkeypatch):
    (run / IN_USE).write_text(json.dumps({"machine": "another", "pid": 1}))
    monkeypatch.setattr("clusters.store.follow.SILENT_S", 0.2)
    claim = Claim(run)
    assert claim.is_held()
    time.sleep(0.3)
    assert not claim.is_held()
    os.utime(run / IN_USE)
    assert claim.is_held()


def test_a_signal_asks_for_the_end_of_the_run(run, place):
    """As a batch system sends it to both: the training saves first."""
    told: list[str] = []
    claim = FolderClaim(run)

    def end() -> None:
        until(lambda: steps(place) == [1])
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: any("asked to stop" in line for line in told))
        add_step(run, 2)
        claim.release()

    thread = threading.Thread(target=end)
    thread.start()
    assert follow(Upload(run, place, 0, told.append), 60.0, 10)
    thread.join()
    assert steps(place) == [2, 1]


def test_a_run_that_does_not_start_is_uploaded_once(run, place):
    told: list[str] = []
    assert follow(Upload(run, place, 0, told.append), 60.0, 0.1)
    assert "nobody trains in" in told[0] and steps(place) == [1]
