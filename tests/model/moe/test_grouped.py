"""The hand-written backward passes, against numerical gradients and against the same thing written plainly."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import gelu, grouped_mm, linear

from model.feed_forward import LinearPair
from model.moe.experts import ExpertLinear
from model.moe.grouped import grouped_linear
from model.moe.merge import MergePlan, _Totals, plan_merge, start_merge
from parallel.collectives import Axis
from parallel.dispatch import combine, dispatch, dispatch_weights
from parallel.dispatch_plan import RowGroups, plan_dispatch
from parallel.mesh import Mesh
from tests.helpers.devices import DEVICES
from tests.helpers.hot_path import Launches


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("out", [2, 3])
def test_grouped_linear(with_bias, with_scale, out):
    """Narrowing or not. Three blocks, one of them empty, two of the same weight; the third weight has no rows."""
    blocks = ((0, 2, 1), (2, 2, 0), (2, 5, 0), (5, 6, 1))
    x, weight = drawn(6, 3), drawn(3, out, 3, seed=1)
    bias, scale = drawn(3, out, seed=2) if with_bias else None, drawn(6, seed=3) if with_scale else None
    y = grouped_linear(x, blocks, weight, bias, scale)
    for start, end, index in blocks:
        expected = linear(x[start:end], weight[index], None if bias is None else bias[index])
        torch.testing.assert_close(y[start:end], expected if scale is None else expected * scale[start:end, None])
    inputs = [t for t in (x, weight, bias, scale) if t is not None]

    def again(*_):
        return grouped_linear(x, blocks, weight, bias, scale)

    assert gradcheck(again, inputs)
    y.sum().backward()
    assert weight.grad is not None and not weight.grad[2].any() and weight.grad[:2].any()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("ends", [(2, 2, 6), (0, 5, 5), (0, 0, 0)])
@pytest.mark.parametrize("out", [8, 16])
@pytest.mark.parametrize("device", DEVICES)
def test_grouped_products_equal_those_one_by_one(with_bias, with_scale, ends, out, device, monkeypatch):
    """Forced on the CPU, in fp32; a GPU has them for bf16. Rows behind the last expert's belong to none: they are anything, and weigh
    nothing."""
    dtype, most = (torch.bfloat16, 2e-2) if device == "cuda" else (torch.float32, 1e-5)
    x, weight, bias = drawn(7, 16), drawn(3, out, 16, seed=1), drawn(3, out, seed=2) if with_bias else None
    kept = (torch.arange(7) < ends[-1]).double()
    scale = (drawn(7, seed=3).detach().abs() * kept).requires_grad_() if with_scale else None
    inputs = [t for t in (x, weight, bias, scale) if t is not None]
    results = []
    for forced in (False, True):
        monkeypatch.setattr("model.moe.grouped.has_grouped_products", lambda x, forced=forced: forced)
        given = ((x, dtype), (weight, dtype), (bias, dtype), (scale, torch.float32))
        copies = [None if t is None else t.detach().to(device, kind).requires_grad_() for t, kind in given]
        expert_R = torch.tensor([min(2, sum(end <= row for end in ends)) for row in range(7)], device=device)
        ends_e = torch.tensor(ends, dtype=torch.int32, device=device)
        groups = RowGroups(ends_e, 7, expert_R, is_all=ends[-1] == 7)
        y = grouped_linear(copies[0], groups, *copies[1:]) * kept[:, None].to(device, dtype)
        (y**2).sum().backward()
        results.append([y, *(t.grad if t is not None else None for t in copies)])
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= most * (1 + other.norm())
    assert len(inputs) == 2 + with_bias + with_scale


def merged(gate, bank):
    axis = Axis("expert")
    (total,) = start_merge([gate], [bank], plan_merge([], gate.shape[1], axis)).totals()
    return total


def test_merge():
    gate, weight, bias = drawn(1, 2, 3), drawn(3, 2, 4, seed=1), drawn(3, 2, seed=2)
    torch.testing.assert_close(merged(gate, weight), torch.einsum("ce,eoi->coi", gate[0], weight))
    torch.testing.assert_close(merged(gate, bias), gate[0] @ bias)
    assert gradcheck(merged, (gate, weight)) and gradcheck(merged, (gate, bias))


def test_experts_that_were_not_chosen_get_zero():
    gate = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]], dtype=torch.float64).requires_grad_()
    weight = drawn(3, 2, 4, seed=1)
    merged(gate, weight).sum().backward()
    assert weight.grad is not None and gate.grad is not None
    assert weight.grad[:, 0, 0].tolist() == [0.5, 0.0, 1.5]
    assert gate.grad[0, :, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("banks", [1, 3])
def test_sums_of_peers_are_added_in_their_order_in_few_launches(banks):
    """Five rows for three groups: the first adds to 1 and 2, the others are 10, 20 and what came before. Group 1 has no own experts, so
    what was in its place is overwritten."""
    groups = [0, 1, 2, 1, 0]
    plan = MergePlan(Axis("expert"), [], groups, 3, frozenset({1}), [0] * 3, [0, 3, 2])
    assert plan.rounds == [[(1, 1)], [(0, 0), (2, 2), (3, 1)], [(4, 0)]]
    # Were rows summed first, 1 would not vanish beside 1e8.
    own_GX = [torch.tensor([[1.0], [7.0], [2.0]]) for _ in range(banks)]
    rows_RY = torch.tensor([[1e8], [10.0], [3.0], [20.0], [-1e8]]).repeat(1, banks).requires_grad_()
    with Launches() as forward:
        totals = _Totals.apply(plan, rows_RY, *own_GX)
    assert [total_GX.flatten().tolist() for total_GX in totals] == [[0.0, 30.0, 5.0]] * banks
    loss = sum((total_GX * torch.tensor([[1.0], [2.0], [3.0]])).sum() for total_GX in totals)
    with Launches() as backward:
        loss.backward()
    assert rows_RY.grad.tolist() == [[float(group + 1)] * banks for group in groups]
    assert (forward.seen["_foreach_add_"], forward.seen["_foreach_copy_"]) == (2, 1)
    assert forward.seen.total() == 3 and backward.seen["copy_"] == 0 and backward.seen["_foreach_copy_"] == 1


@pytest.mark.parametrize(
    "dropped", [(), ((1, 0),), ((0, 0), (0, 1)), tuple((t, k) for t in range(3) for k in range(2))]
)
def test_tokens_get_the_sum_of_their_copies(dropped):
    """Three tokens, two choices each, some of them dropped, with a weight of zero."""
    ids = torch.tensor([[0, 1], [1, 0], [1, 2]])
    kept = torch.ones(3, 2, dtype=torch.bool)
    for token, choice in dropped:
        kept[token, choice] = False
    plan = plan_dispatch(ids, kept, 3, Axis("expert"))
    x, weights = drawn(3, 2), drawn(3, 2, seed=1)
    y = combine(dispatch(x, plan) * dispatch_weights(weights * kept, plan)[:, None], plan)
    total = (weights * kept).sum(dim=1)
    torch.testing.assert_close(y, total[:, None] * x)
    assert gradcheck(
        lambda *_: combine(dispatch(x, plan) * dispatch_weights(weights * kept, plan)[:, None], plan), (x, weights)
    )


def test_a_pair_at_the_expert_equals_two_linears_with_a_stop_at_home():
    up, down = (ExpertLinear(*shape, 3, side, Mesh()).double() for *shape, side in ((2, 4, "column"), (4, 2, "row")))
    for seed, parameter in enumerate((*up.parameters(), *down.parameters())):
        parameter.data = drawn(*parameter.shape, seed=seed).detach()
    plan = plan_dispatch(torch.tensor([[2], [0], [2], [1]]), torch.tensor([[True]] * 3 + [[False]]), 3, Axis("expert"))
    x, weights = drawn(4, 2), drawn(4, 1, seed=9)
    scale = dispatch_weights(weights, plan)
    hidden = gelu(combine(up.grouped(dispatch(x, plan), plan.groups, scale), plan))
    expected = combine(down.grouped(dispatch(hidden, plan), plan.groups, scale), plan)
    got = combine(LinearPair(up, down).grouped(dispatch(x, plan), plan.groups, scale), plan)
    torch.testing.assert_close(got, expected)
    inputs = (x, weights, *up.parameters(), *down.parameters())
    for a, b in zip(
        torch.autograd.grad(got.sum(), inputs, retain_graph=True),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("out", "grouped"), [(16, True), (12, False)])
def test_widths_that_the_kernel_cannot_read_are_multiplied_one_by_one(out, grouped, monkeypatch):
    """bf16 rows of 12 numbers are 24 bytes, no whole 16."""
    called = []
    monkeypatch.setattr("model.moe.grouped.has_grouped_products", lambda x: True)
    monkeypatch.setattr(
        "model.moe.grouped.grouped_mm", lambda *args, **options: called.append(1) or grouped_mm(*args, **options)
    )
    x, weight = (drawn(*shape).detach().bfloat16() for shape in ((4, 16), (2, out, 16)))
    expert_R = torch.tensor([0, 0, 1, 1])
    groups = RowGroups(torch.tensor([2, 4], dtype=torch.int32), 4, expert_R, is_all=True)
    y = grouped_linear(x, groups, weight, None)
    assert bool(called) == grouped
    torch.testing.assert_close(
        y.float(), torch.cat([x[:2] @ weight[0].T, x[2:] @ weight[1].T]).float(), atol=2e-2, rtol=0
    )


def test_a_weight_without_rows_gets_zero_where_its_product_writes_nothing(monkeypatch):
    """As on Blackwell, where its gradient is what lay in memory."""

    def unwritten(rows, *args, offs):
        out = grouped_mm(rows, *args, offs=offs)
        if out.dim() == 3:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    monkeypatch.setattr("model.moe.grouped.has_grouped_products", lambda x: True)
    monkeypatch.setattr("model.moe.grouped.leaves_gradients_unwritten", lambda x: True)
    monkeypatch.setattr("model.moe.grouped.grouped_mm", unwritten)
    weight = drawn(3, 8, 16).detach().float().requires_grad_()
    groups = RowGroups(torch.tensor([0, 4, 4], dtype=torch.int32), 4, torch.tensor([1, 1, 1, 1]), is_all=True)
    grouped_linear(torch.ones(4, 16), groups, weight, None).sum().backward()
    assert weight.grad is not None and not weight.grad[[0, 2]].any() and (weight.grad[1] == 4).all()


def test_without_rows_nothing_is_asked_of_a_kernel(monkeypatch):
    """torch's takes no matrix of a width of zero."""
    monkeypatch.setattr("model.moe.grouped.has_grouped_products", lambda x: True)
    monkeypatch.setattr("model.moe.grouped.grouped_mm", None)
    weight = drawn(2, 8, 16).detach().requires_grad_()
    groups = RowGroups(
        torch.zeros(2, dtype=torch.int32, device="meta"), 0, torch.zeros(0, dtype=torch.int64), is_all=True
    )
    y = grouped_linear(torch.zeros(0, 16, dtype=torch.float64), groups, weight, None)
    y.sum().backward()
    assert y.shape == (0, 8) and weight.grad is not None and not weight.grad.any()


def test_equal_groups_are_known_on_the_host():
    assert RowGroups.equal(2, 3, torch.device("meta")).blocks == ((0, 3, 0), (3, 6, 1))


@pytest.mark.parametrize("out", [16, 64])
def test_gradients_of_gate_weights_do_not_overflow_in_fp16(out):
    """fp16 has no 90,000, which is one product of 300 x 300."""
    x, weight, bias = torch.full((2, 64), 300.0), torch.eye(out, 64)[None], torch.full((1, out), 300.0)
    scale = torch.ones(2, requires_grad=True)
    blocks = [(0, 2, 0)]
    y = grouped_linear(x.half(), blocks, weight.half(), bias.half(), scale)
    y.backward(torch.full_like(y, 300.0))
    assert scale.grad.tolist() == [out * 300.0 * 600.0] * 2
