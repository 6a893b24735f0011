"""Gradient norms by family, and clipping, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from parallel.norms import clip_gradients, family_of, gradient_norms
from parallel.optimizer_state import Piece
from tests.helpers.hot_path import Launches


def piece(*values: float, owned: bool = True) -> Piece:
    gradient = torch.tensor(values) if values else None
    weight = torch.zeros(max(1, len(values)))
    return Piece(torch.nn.Parameter(weight), 0, owned, weight, gradient, {})


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("tower.encoder.blocks.0.attention.qkv.linear.weight", "dense"),
        ("tower.encoder.blocks.1.attention.qkv.bank.weight", "experts"),
        ("tower.encoder.blocks.1.ffn.experts.up.weight", "experts"),
        ("tower.encoder.blocks.1.ffn_path.router.gate.weight", "routers"),
        ("tower.encoder.blocks.1.router.bank.weight", "routers"),  # what a router holds is the router's
    ],
)
def test_families_follow_from_names(name, family):
    assert family_of(name) == family


def test_norms_by_hand():
    named = [
        ("a.weight", piece(3.0, 4.0)),  # 25
        ("b.weight", piece(12.0)),  # 144: dense 169 = 13^2
        ("c.bank.weight", piece(2.0, 2.0, 1.0)),  # 9: experts 3
        ("d.router.gate.weight", piece(-1.5)),
        ("copy.weight", piece(100.0, owned=False)),  # another rank counts it
        ("unused.weight", piece()),
    ]
    norms = gradient_norms(named, "cpu")
    assert (norms.dense, norms.experts, norms.routers) == pytest.approx((13.0, 3.0, 1.5))
    assert norms.total == pytest.approx((169 + 9 + 2.25) ** 0.5)


def test_a_loss_scale_is_divided_out():
    assert gradient_norms([("a.weight", piece(6.0, 8.0))], "cpu", loss_scale=4.0).total == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("norm", "limit", "factor"),
    [(5.0, 1.0, 0.2), (5.0, 4.9, 0.98), (5.0, 5.0, 1.0), (5.0, 6.0, 1.0), (5.0, 0.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_clipping_scales_by_limit_over_norm_and_only_above_the_limit(norm, limit, factor):
    pieces = [piece(3.0, 4.0), piece(), piece(10.0, owned=False)]
    clip_gradients(pieces, norm, limit)
    assert pieces[0].gradient.tolist() == pytest.approx([3.0 * factor, 4.0 * factor])
    assert pieces[2].gradient.tolist() == pytest.approx([10.0 * factor])  # a copy is scaled like its owner's


def test_few_kernels_whatever_the_number_of_parameters():
    named = [(f"{i}.{kind}.weight", piece(3.0, 4.0)) for i in range(100) for kind in ("linear", "bank", "router.gate")]
    with Launches() as launches:
        norms = gradient_norms(named, "cpu")
        clip_gradients([piece for _, piece in named], norms.total, 1.0)
    assert norms.dense == norms.experts == norms.routers == pytest.approx(50)
    assert launches.launches <= 25


def test_a_gradient_that_is_not_finite_is_seen():
    for value in (float("nan"), float("inf")):
        assert not math.isfinite(gradient_norms([("a.weight", piece(1.0, value))], "cpu").total)
