"""Work in processes, which may die of what they read."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from data.workers.pool import Died, each
from tests.helpers.places import ROOT


def square(number):
    if number == 3:
        os._exit(11)  # as a codec that crashes
    return number * number


def test_results_come_in_order_and_a_dead_process_is_one_result():
    found = dict(each(square, range(8), workers=2))
    assert list(found) == list(range(8))
    assert isinstance(found.pop(3), Died)
    assert found == {n: n * n for n in (0, 1, 2, 4, 5, 6, 7)}


def test_without_processes():
    assert list(each(abs, [-2, 1], workers=0)) == [(-2, 2), (1, 1)]


def test_no_process_outlives_a_kill():
    # By a name, or the generator would end with its line.
    code = (
        "import time\nfrom data.workers.pool import each\n"
        "results = each(time.sleep, [0, 600, 600], 2)\nprint(next(results), flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert parent.stdout.readline() == b"(0, None)\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 3  # the fork server, its resource tracker and two workers
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(child.is_running() and child.status() != "zombie" for child in children):
        time.sleep(0.05)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def drawing(drawn, count):
    for number in range(count):
        drawn.append(number)
        yield number


def test_every_item_once_and_not_drawn_far_ahead():
    for workers in (0, 2):
        drawn: list[int] = []
        results = each(abs, drawing(drawn, 50), workers)
        found = [next(results)]
        assert len(drawn) <= 2 * workers + 1
        assert [*found, *results] == [(n, n) for n in range(50)]


def test_what_a_call_raises_comes_back():
    with pytest.raises(ValueError, match="invalid literal"):
        list(each(int, ["x"], 2))
