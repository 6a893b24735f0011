"""Noise of rows that data ranks share: by a row's number, wherever it stands."""

from __future__ import annotations

import pytest
import torch

from model.noise import Keys, derive, derive_own, keys_of, normal, uniform

ROWS = torch.arange(1 << 14) + (3 << 32)
LIKE = torch.zeros(1)


def test_rows_draw_by_their_number_alone():
    key = Keys(5, 9)
    for draw in (uniform, normal):
        whole = draw(key, (len(ROWS), 4), LIKE, ROWS)
        some = torch.tensor([7, 2, 4000])
        assert torch.equal(draw(Keys(6, 9), (3, 4), LIKE, ROWS[some]), whole[some])
        assert not torch.equal(draw(Keys(5, 8), (3, 4), LIKE, ROWS[some]), whole[some])
        # The micro-batch's own rows stand before them, and draw what they did alone.
        both = draw(key, (5, 4), LIKE, ROWS[some])
        assert torch.equal(both[:2], draw(5, (2, 4), LIKE)) and torch.equal(both[2:], whole[some])
        assert draw(key, (3,), LIKE, ROWS[some]).shape == (3,) and draw(key, (3, 1, 1), LIKE, ROWS[some]).dim() == 3


@pytest.mark.parametrize("key", [0, 1, 77, (1 << 56) - 1])
def test_drawn_numbers_are_spread_as_they_should_be(key):
    """Means, deviations and no correlation between rows, columns and neighbouring keys; 65,536 numbers."""
    u = uniform(key, (len(ROWS), 4), LIKE, ROWS)
    assert 0 <= float(u.min()) < 1e-3 and 0.999 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    n = normal(key, (len(ROWS), 4), LIKE, ROWS)
    assert n.isfinite().all()
    assert float(n.mean()) == pytest.approx(0, abs=0.02) and float(n.std()) == pytest.approx(1, abs=0.02)
    pairs = torch.stack(
        [n[:-1, 0], n[1:, 0], n[:-1, 1], n[:-1, 3], normal(key + 1, (len(ROWS), 4), LIKE, ROWS)[:-1, 0]]
    )
    assert (torch.corrcoef(pairs) - torch.eye(5)).abs().max() < 0.04


def test_both_keys_go_the_same_way_but_for_parts_of_a_pass():
    keys = keys_of(1, 2, 3)
    assert keys.shared == keys_of(1, 2, 4).shared != keys_of(1, 3, 3).shared
    assert keys.own == derive(1, "noise", 2, 3)
    assert derive(keys, "a", 1) == Keys(derive(keys.own, "a", 1), derive(keys.shared, "a", 1))
    assert derive_own(keys, "chunk", 0) == Keys(derive(keys.own, "chunk", 0), keys.shared)
    assert derive_own(None, "chunk", 0) is None
