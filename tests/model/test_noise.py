"""Noise by key and counter: spread as it should be, and the same wherever a row stands."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model import noise
from model.layout import PassLayout
from model.noise import Keys, both, derive, derive_own, each, keys_of, normal, uniform
from tests.helpers.layouts import joined, plain_layout

COUNTERS = each(torch.arange(1 << 14) + (3 << 32), 4)


def test_numbers_by_hand():
    """The hash is part of what runs resume by: it must not change."""
    assert uniform(5, torch.tensor([0, 1])).mul(1 << 24).long().tolist() == [15_876_174, 1_502_142]
    assert torch.equal(uniform(5, torch.tensor([1])), uniform(5, torch.tensor([0, 1]))[1:])


def test_the_smallest_and_the_widest_draw_are_numbers(monkeypatch):
    """One draw in 2^24 each: a pass of a large model has many of them."""
    monkeypatch.setattr(noise, "_bits", lambda key, counter: torch.tensor([0, 1, (1 << 24) - 2, (1 << 24) - 1]))
    drawn = normal(0, torch.zeros(4))
    assert drawn.isfinite().all() and 5 < -drawn[0] < 6 and 5 < drawn[3] < 6
    assert (drawn.diff() >= 0).all()


@pytest.mark.parametrize("key", [0, 1, 77, (1 << 56) - 1])
def test_drawn_numbers_are_spread_as_they_should_be(key):
    """Means, deviations and no correlation between rows, columns and neighbouring keys; 65,536 numbers."""
    u = uniform(key, COUNTERS)
    assert 0 <= float(u.min()) < 1e-3 and 0.999 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01) and float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    n = normal(key, COUNTERS)
    assert n.isfinite().all()
    assert float(n.mean()) == pytest.approx(0, abs=0.02) and float(n.std()) == pytest.approx(1, abs=0.02)
    pairs = torch.stack([n[:-1, 0], n[1:, 0], n[:-1, 1], n[:-1, 3], normal(derive(key, "next"), COUNTERS)[:-1, 0]])
    assert (torch.corrcoef(pairs) - torch.eye(5)).abs().max() < 0.04


def test_both_keys_go_the_same_way_but_for_parts_of_a_pass():
    keys = keys_of(1, 2, 3)
    assert keys.shared == keys_of(1, 2, 4).shared != keys_of(1, 3, 3).shared
    assert keys.own == derive(1, "noise", 2, 3)
    assert derive(keys, "a", 1) == Keys(derive(keys.own, "a", 1), derive(keys.shared, "a", 1))
    assert derive_own(keys, "chunk", 0) == Keys(derive(keys.own, "chunk", 0), keys.shared)
    assert derive_own(None, "chunk", 0) is None and both(7) == Keys(7, 7) and both(None) is None


def test_shared_rows_draw_by_their_number_alone():
    """Rows 1 and 2 of three, in a pass of their own or behind others, draw what they drew among all."""
    whole = with_numbers(plain_layout(torch.ones(3, 2, dtype=torch.bool)), [0, 1, 2])
    part = with_numbers(plain_layout(torch.ones(2, 2, dtype=torch.bool)), [1, 2])
    behind = joined(plain_layout(torch.ones(4, 5, dtype=torch.bool)), part, noise=11)
    behind = PassLayout((behind.sequences[0], dataclasses.replace(behind.sequences[1], noise=9)))
    for draw in (uniform, normal):
        rows, tokens = draw(5, whole.counter_R), draw(5, each(whole.counter_T, 3))
        assert torch.equal(draw(5, part.counter_R), rows[1:]) and torch.equal(draw(5, behind.counter_R)[4:], rows[1:])
        assert torch.equal(draw(5, each(part.counter_T, 3)), tokens[2:])
        assert torch.equal(draw(5, each(behind.counter_T, 3))[20:], tokens[2:])
        assert len(set(draw(5, whole.counter_T).tolist())) == 6


def with_numbers(layout: PassLayout, numbers: list[int]) -> PassLayout:
    (sequence,) = layout.sequences
    return PassLayout((dataclasses.replace(sequence, noise=9, rows_B=torch.tensor(numbers) + (3 << 32)),))
