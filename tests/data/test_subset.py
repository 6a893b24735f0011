"""Class-balanced parts of a data set."""

from __future__ import annotations

import numpy as np
import pytest

from data.subset import chosen

LABELS = np.array([0] * 250 + [1] * 3 + [4] * 120)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"shots": 1}, [1, 1, 1]),
        ({"shots": 10}, [10, 3, 10]),  # a class of three gives all it has
        ({"fraction": 0.01}, [3, 1, 2]),  # int(2.5) + 1, int(0.03) + 1, int(1.2) + 1
        ({"fraction": 0.999}, [250, 3, 120]),
        ({}, [250, 3, 120]),
    ],
)
def test_how_many_of_each_class(options, counts):
    found = chosen(LABELS, **options)
    assert [int((LABELS[found] == label).sum()) for label in (0, 1, 4)] == counts
    assert found.tolist() == sorted(set(found.tolist()))


def test_a_part_follows_from_its_seed_and_a_larger_one_holds_it():
    few, more = chosen(LABELS, shots=5, seed=3), chosen(LABELS, shots=20, seed=3)
    assert np.array_equal(few, chosen(LABELS, shots=5, seed=3)) and set(few) < set(more)
    assert not np.array_equal(few, chosen(LABELS, shots=5, seed=4))


def test_a_class_draws_by_itself():
    alone = chosen(LABELS[:250], shots=5)
    assert chosen(LABELS, shots=5)[:5].tolist() == alone.tolist()


@pytest.mark.parametrize(
    "options", [{"shots": -1}, {"fraction": 0.0}, {"fraction": 1.5}, {"shots": 2, "fraction": 0.5}]
)
def test_numbers_that_mean_nothing(options):
    with pytest.raises(ValueError, match="one of them be given"):
        chosen(LABELS, **options)


def test_of_no_sample_it_is_none():
    assert chosen(np.empty(0), shots=3).tolist() == []
