"""Exchanges between real ranks are measured."""

from __future__ import annotations

import pytest

from parallel.health.links import Exchange, measure_exchanges
from tests.helpers.distributed import run_ranks


def test_a_rate_is_what_leaves_a_rank():
    # 3 GB in 1.5 s
    assert Exchange("all-reduce", 4_000_000_000, 1.5, 3_000_000_000).gb_per_s == pytest.approx(2.0)


def measure(rank: int) -> list[Exchange]:
    return measure_exchanges([4096, 65536], 60.0, repeats=2)


def test_both_exchanges_are_measured_for_each_size():
    for found in run_ranks(2, measure):
        assert [(e.operation, e.num_bytes) for e in found] == [
            ("all-reduce", 4096), ("all-to-all", 4096), ("all-reduce", 65536), ("all-to-all", 65536),
        ]  # fmt: skip
        # A ring of two sends 2 x 1/2 of the sum, and half of the rows go to the other.
        assert [e.sent_bytes for e in found] == [4096, 2048, 65536, 32768]
        assert all(0 < e.seconds < 30 for e in found)
