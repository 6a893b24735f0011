"""The nearest vectors, with faiss and without."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from prediction.nearest import nearest


@pytest.fixture(params=["faiss", "numpy"])
def library(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:
        pytest.importorskip("faiss")


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_largest_products_first_and_the_first_of_equal_ones(library):
    """(3, 4) / 5 has the products 0.6 and 0.8 with the axes."""
    vectors = unit([[0, 1], [1, 0], [-1, 0], [0, 1]])
    (found,) = nearest(vectors, unit([[3, 4]]), 3)
    assert [place for place, _ in found] == [0, 3, 1]
    assert [product for _, product in found] == pytest.approx([0.8, 0.8, 0.6])
    (found,) = nearest(vectors, unit([[1, 0]]), 9)
    assert [place for place, _ in found] == [1, 0, 3, 2]


def test_many_copies_at_the_end_of_the_list(library):
    vectors = unit([[1, 2], *[[1, 1]] * 40, [1, 0.9]])
    (found,) = nearest(vectors, unit([[1, 2]]), 5)
    assert [place for place, _ in found] == [0, 1, 2, 3, 4]


def test_both_ways_agree_to_the_last_bit(monkeypatch):
    pytest.importorskip("faiss")
    generator = np.random.default_rng(0)
    vectors, queries = unit(generator.normal(size=(500, 48))), unit(generator.normal(size=(30, 48)))
    vectors[250:] = vectors[:250]
    with_faiss = list(nearest(vectors, queries, 7))
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert list(nearest(vectors, queries, 7)) == with_faiss
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert [[place for place, _ in found] for found in with_faiss] == np.argsort(-exact.round(12), kind="stable")[
        :, :7
    ].tolist()
