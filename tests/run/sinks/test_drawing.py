"""Pictures of lists: which records have them, and that cells stand where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from run.sinks.drawing import CELL, LINE, RAMP, finite, heat_map, is_drawn
from tests.run.sinks.made import loaded


@pytest.mark.parametrize(
    ("steps", "log_every", "drawn"),
    [
        (10, 1, list(range(1, 11))),
        (10, 4, [4, 8, 10]),
        (1000, 10, list(range(10, 1001, 10))),  # 100 records
        (4000, 10, list(range(20, 4001, 20))),  # 400 records: every second
        (4010, 10, [*range(30, 4010, 30), 4010]),  # 401: every third
    ],
)
def test_at_most_200_records_are_drawn_and_the_last_is(steps, log_every, drawn, config):
    run = dataclasses.replace(loaded(config), steps=steps, log_every=log_every)
    logged = [step for step in range(1, steps + 1) if step % log_every == 0 or step == steps]
    assert [step for step in logged if is_drawn(step, run)] == drawn and len(drawn) <= 201


def test_a_cell_has_the_colour_of_its_share():
    """Four experts: brightest is everything. Half of it is the middle colour, what is no number is black."""
    picture = heat_map([[0.0, 1.0, 0.5, float("nan")], [0.25, 0.75, 2.0, 0.0]], ["0 attention", "0 ffn"])
    left = next(x for x in range(picture.shape[1]) if (picture[LINE + 2, x] == RAMP[0]).all())
    cells = picture[LINE + 2 : LINE + 2 * CELL : CELL, left + 2 : left + 4 * CELL : CELL]
    assert cells.tolist() == [[*RAMP[[0, 4, 2]].tolist(), [0, 0, 0]], RAMP[[1, 3, 4, 0]].tolist()]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_the_brightest_is_four_times_an_equal_share():
    rows = heat_map([[4 / 32] + [1 / 32] * 31], ["0 ffn"])[LINE + 2]
    assert (rows == RAMP[4]).all(axis=1).sum() == CELL and (rows == RAMP[1]).all(axis=1).sum() == 31 * CELL


def test_numbers_alone_are_counted():
    assert finite([[0.5, float("nan")], [float("inf"), 1]]).tolist() == [0.5, 1.0] and not finite([]).size
