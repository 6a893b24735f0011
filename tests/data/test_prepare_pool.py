"""Calls in worker processes."""

from __future__ import annotations

import functools
import os
import time

import pytest

from data.prepare.pool import run
from data.shards import DatasetError


def calls(drawn, count):
    for number in range(count):
        drawn.append(number)
        yield functools.partial(pow, number, 2)


def test_every_call_once_and_not_drawn_far_ahead():
    for workers in (1, 2):
        drawn: list[int] = []
        results = run(calls(drawn, 50), workers)
        found = [next(results)]
        assert len(drawn) <= 2 * workers + 1
        assert sorted([*found, *results]) == [n * n for n in range(50)]


def test_what_a_call_raises_comes_back():
    with pytest.raises(ValueError, match="invalid literal"):
        list(run(iter([functools.partial(int, "x")]), 2))


def test_a_worker_that_dies_is_an_error_with_a_remedy():
    sleeps = (functools.partial(time.sleep, 0.01) for _ in range(20))
    with pytest.raises(DatasetError, match="repeat the command to go on"):
        list(run(iter([functools.partial(os._exit, 9), *sleeps]), 2))
