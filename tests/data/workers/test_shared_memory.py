"""Memory that goes from real worker processes to this one and back."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from data.workers.loader import loader_of
from data.workers.packing import Packed, unpack
from data.workers.shared_memory import Borrower, Lender, Loan
from tests.helpers.limits import within

SIZES = (100, 5000, 100, 70_000, 3)
COUNT = 60


class Counting(IterableDataset):
    """Item i is i as often as SIZES says, from the worker whose turn it is."""

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        for i in range(worker.id, COUNT, worker.num_workers):
            yield {"number": i, "x": torch.full((SIZES[i % len(SIZES)],), i)}


def expected(i: int) -> list[int]:
    return [i] * SIZES[i % len(SIZES)]


@pytest.fixture
def loans() -> Iterator[Iterator[Loan]]:
    with within(120):
        yield loader_of(Counting(), 2, Lender())


def test_every_item_comes_through_and_few_pieces_do_for_all(loans):
    borrower, pieces = Borrower(), set()
    for i, loan in enumerate(loans):
        item = unpack(borrower(loan))
        assert item["number"] == i and item["x"].tolist() == expected(i)
        pieces.add((loan.worker, loan.number))
        del item
    assert i == COUNT - 1
    # Of each worker four are on the way, one is with us and one in the making.
    assert {worker for worker, _ in pieces} == {0, 1} and len(pieces) <= 2 * 6


def test_what_is_still_in_use_is_not_lent_again(loans):
    """However long it is held: all items, or one small view of one of them."""
    borrower = Borrower()
    view = unpack(borrower(next(loans)))["x"][7:9]
    items = [unpack(borrower(loan)) for loan in loans]
    assert view.tolist() == [0, 0]
    for i, item in enumerate(items, start=1):
        assert item["number"] == i and item["x"].tolist() == expected(i)


def test_memory_is_sent_once_and_given_back_when_the_last_tensor_is_gone(monkeypatch):
    monkeypatch.setattr("data.workers.shared_memory.get_worker_info", lambda: type("Info", (), {"id": 3}))
    lender, borrower = Lender(), Borrower()
    first = lender({"x": torch.arange(10)})
    assert (first.worker, first.number) == (3, 0) and first.memory_N is not None
    item = unpack(borrower(first))
    second = lender({"x": torch.arange(10)})
    assert second.number == 1 and second.memory_N is not None
    borrower(second)
    part = item["x"][2:4]
    del item
    gc.collect()
    third = lender({"x": torch.arange(20, 30)})
    assert third.number == 1 and third.memory_N is None  # piece 0 is still looked at
    assert part.tolist() == [2, 3]
    assert unpack(borrower(third))["x"].tolist() == list(range(20, 30))
    del part
    taken = [lender(torch.zeros(1)).number for _ in range(3)]
    assert sorted(taken) == [0, 1, 2]


def test_a_free_piece_that_is_too_small_is_replaced(monkeypatch):
    monkeypatch.setattr("data.workers.shared_memory.get_worker_info", lambda: type("Info", (), {"id": 0}))
    lender, borrower = Lender(), Borrower()
    for size, fresh in ((10, True), (100_000, True), (50, False), (100_000, False)):
        loan = lender(torch.full((size,), size))
        assert loan.number == 0 and (loan.memory_N is not None) == fresh
        assert unpack(borrower(loan)).tolist() == [size] * size


def test_the_smallest_piece_that_fits_is_taken(monkeypatch):
    monkeypatch.setattr("data.workers.shared_memory.get_worker_info", lambda: type("Info", (), {"id": 0}))
    lender, borrower = Lender(), Borrower()
    held = [borrower(lender(torch.zeros(size))) for size in (100_000, 10, 1000)]
    del held
    assert [lender(torch.zeros(size)).number for size in (10, 1000, 1000)] == [1, 2, 0]


def test_outside_a_worker_memory_is_an_items_own():
    packed = Lender()({"x": torch.arange(3)})
    assert isinstance(packed, Packed) and unpack(packed)["x"].tolist() == [0, 1, 2]


@pytest.mark.skipif(not Path("/proc/self/maps").exists() or not hasattr(os, "memfd_create"), reason="needs Linux")
def test_it_has_no_name_and_is_not_in_the_folder_that_containers_limit(loans):
    borrower = Borrower()
    packed = borrower(next(loans))
    assert packed.buffer_N.numel()
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "micro-batch" in line]
    assert lines and all("/memfd:" in line and "/dev/shm" not in line for line in lines)
