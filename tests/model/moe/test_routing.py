"""Top-k, capacity and priority by hand; merge equals dispatch."""

from __future__ import annotations

from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from data.attributes import TEXT_INPUT, VISUAL_INPUT
from model.moe.config import ExpertConfig
from model.moe.experts import ExpertLinear, start_merges
from model.moe.gates import gates_of
from model.moe.layer import DispatchDecision, DispatchPath, MergeDecision
from model.moe.report import RoutingReport, summed_up
from model.moe.router import AttributeRouter
from model.moe.routing import capacity, kept_choices, scatter_weights, top_k
from model.moe.use import ExpertUse
from model.reading import BatchError
from parallel.collectives import Axis, all_gather
from parallel.dispatch_plan import plan_dispatch
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.hot_path import Launches, Waits
from tests.helpers.layouts import Span, joined, plain_layout

REPORT = RoutingReport(ExpertUse(*torch.zeros(2, 3, 4), *torch.zeros(3, 3)), {})


def bank(width_in=3, width_out=5, experts=4) -> ExpertLinear:
    layer = ExpertLinear(width_in, width_out, experts, "column", Mesh())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(generator=generator)
    return layer


def test_top_k_by_hand():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]).log()
    ids, weights = top_k(logits, 2, renormalise=True)
    assert ids.tolist() == [[1, 2], [0, 1]]  # a tie goes to the lowest id
    assert weights.tolist() == [pytest.approx([0.625, 0.375]), [0.5, 0.5]]
    _, raw = top_k(logits, 2, renormalise=False)
    assert raw[0].tolist() == pytest.approx([0.5, 0.3])
    _, single = top_k(logits, 1, renormalise=True)
    assert single[0].item() == pytest.approx(0.5)  # k = 1 keeps the probability, or the router would get no gradient
    assert scatter_weights(ids, weights, 4)[0].tolist() == pytest.approx([0, 0.625, 0.375, 0])


def test_capacity_by_hand():
    assert [capacity(tokens, 2, 1.0, 4) for tokens in (10, 20, 1)] == [5, 10, 1]  # 0.5 rounds up to 1
    assert [capacity(tokens, 2, 1.05, 4) for tokens in (10, 20, 1)] == [6, 11, 1]  # ceil of 5.25 and 10.5
    assert [capacity(tokens, 2, 1.05, 4, rounding="round") for tokens in (10, 20, 1)] == [5, 11, 1]
    assert [capacity(tokens, 2, 1.05, 4, multiple=4) for tokens in (10, 20, 1)] == [8, 12, 1]  # never more than tokens
    assert [capacity(tokens, 2, 8.0, 4) for tokens in (10, 20, 1)] == [10, 20, 1]
    assert [capacity(tokens, 1, 0.01, 4) for tokens in (10, 20, 1)] == [1, 1, 1]
    assert capacity(20, 1, 1.05, 1) == 20  # 1.05 * 20 is 21, not 22: no rounding error


def test_kept_choices_by_hand():
    # Three tokens all choose expert 0 first; two slots. Priorities 0.2, 0.9, 0.5: token 0 loses its first choice.
    # Second choices: token 0 and 1 want expert 1, token 2 expert 2: all find room.
    ids = torch.tensor([[0, 1], [0, 1], [0, 2]])
    kept = kept_choices(ids, torch.tensor([0.2, 0.9, 0.5]), (2,), num_experts=3)
    assert kept.tolist() == [[False, True], [True, True], [True, True]]


def test_slots_without_priorities_go_to_who_comes_first():
    # Two groups of three tokens, one slot and two: everyone wants expert 0, and token 1 does not ask.
    ids, groups = torch.zeros(6, 1, dtype=torch.long), torch.tensor([0, 0, 0, 1, 1, 1])
    asked = torch.tensor([True, False, True, True, True, True])[:, None]
    assert kept_choices(ids, None, (2,), 3).squeeze(1).tolist() == [True, True, False, False, False, False]
    assert kept_choices(ids, None, (2,), 3, None, asked).squeeze(1).tolist() == [True, False, True, False, False, False]
    kept = kept_choices(ids, None, (1, 2), 3, groups, asked)
    assert kept.squeeze(1).tolist() == [True, False, False, True, True, False]


def test_first_choices_come_before_second_ones():
    # Token 0 wants expert 1 as second choice, token 1 as first; one slot: the first choice has it.
    ids = torch.tensor([[0, 1], [1, 2]])
    kept = kept_choices(ids, torch.tensor([0.9, 0.1]), (1,), num_experts=3)
    assert kept.tolist() == [[True, False], [True, True]]


@hypothesis.given(seed=st.integers(0, 10_000), tokens=st.integers(1, 12), slots=st.integers(1, 6))
def test_priority_never_drops_the_better_of_two_first_choices(seed, tokens, slots):
    probs = torch.rand(tokens, 4, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    ids, _ = top_k(probs.log(), 2, renormalise=True)
    priority = probs.amax(-1)
    kept = kept_choices(ids, priority, (slots,), 4)
    for expert in range(4):
        first = ids[:, 0] == expert
        if (first & kept[:, 0]).any() and (first & ~kept[:, 0]).any():
            assert priority[first & kept[:, 0]].min() >= priority[first & ~kept[:, 0]].max()
        assert ((ids == expert) & kept).sum() <= slots


def decisions(layer, weights_GE, layout):
    """The same decisions for both paths: a group's weights given to each of its tokens."""
    axis = Axis("expert")
    merges = start_merges((layer,), all_gather(weights_GE, axis), [], len(weights_GE), axis)
    merge = MergeDecision(merges.totals(), layout.blocks, layout.first_groups, REPORT)
    dense_TE = weights_GE[layout.sequences[0].group_T]
    weights_TK, ids_TK = dense_TE.topk(2, dim=1)
    plan = plan_dispatch(ids_TK, weights_TK > 0, weights_GE.shape[1], Axis("expert"))
    return merge, DispatchDecision.of(weights_TK, (plan,), REPORT)


def test_merge_equals_dispatch_with_all_gradients():
    layer = bank()
    weights = torch.tensor([[0.0, 0.7, 0.3, 0.0], [0.6, 0.0, 0.0, 0.4]])
    valid_BL = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    layout = plain_layout(valid_BL, Span(0, 2, 0), Span(2, 6, 1), by_group=True)
    results = []
    for index in range(2):
        w = weights.clone().requires_grad_()
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = decisions(layer, w, layout)[index].apply(layer, x)
        layer.zero_grad()
        (y**2).sum().backward()
        assert w.grad is not None and x.grad is not None
        # The merged path also gives gradients to experts that were not chosen (their weight is zero); a router never sees them.
        results.append((y, w.grad * (weights > 0), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for merged, dispatched in zip(*results, strict=True):
        torch.testing.assert_close(merged, dispatched, rtol=1e-5, atol=1e-5)


def test_all_experts_with_equal_weights_are_their_mean():
    layer = bank()
    x = torch.randn(4, 3)
    merges = start_merges((layer,), torch.full((1, 1, 4), 0.25), [], 1, Axis("expert"))
    got = MergeDecision(merges.totals(), ((0, 4, 0),), (0,), REPORT).apply(layer, x)
    expected = torch.nn.functional.linear(x, layer.weight.mean(0), layer.bias.mean(0))
    torch.testing.assert_close(got, expected)


def test_an_expert_without_tokens_has_a_zero_gradient_and_not_none():
    layer = bank()
    layout = plain_layout(torch.ones(1, 3, dtype=torch.bool))
    _, dispatch = decisions(layer, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), layout)
    dispatch.apply(layer, torch.randn(3, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[2:].abs().sum() == 0 and layer.weight.grad[:2].abs().sum() > 0


def test_dropped_tokens_come_out_as_zero():
    config = ExpertConfig(router="token", num_experts=4, top_k=1, capacity_factor=0.5)
    path = DispatchPath(3, config, 0, Mesh(), load_kernels("torch"))
    torch.nn.init.zeros_(path.router.gate.weight)  # all ties: everyone chooses expert 0
    x = torch.randn(8, 3)
    layout = plain_layout(torch.ones(1, 8, dtype=torch.bool))
    decision = path(x, layout, None)
    y = decision.apply(bank(), x)
    assert (y[1:] == 0).all() and (y[0] != 0).any()  # capacity ceil(8 * 0.5 / 4) = 1
    (report,) = summed_up([decision.report], layout)
    assert report.use.taken_ME.tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4]
    assert report.use.asked_M.tolist() == [8, 0, 0]


def test_attribute_router_separates_by_attributes_alone():
    router = AttributeRouter(16, ExpertConfig(num_experts=4), 0, load_kernels("torch"))
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    three = [
        plain_layout(torch.ones(1, 1, dtype=torch.bool), vectors=[vector])
        for vector in (VISUAL_INPUT, TEXT_INPUT, VISUAL_INPUT)
    ]
    weights, _ = router(joined(*three), None)
    torch.testing.assert_close(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert ((weights > 0).sum(1) == 2).all()


def test_too_many_groups_are_refused_where_they_are_exchanged(monkeypatch):
    router = AttributeRouter(16, ExpertConfig(num_experts=4), 0, load_kernels("torch"))
    spans = [Span(i, i + 1, i) for i in range(5)]
    layout = plain_layout(torch.ones(1, 5, dtype=torch.bool), *spans)
    with pytest.raises(BatchError, match="5 groups of tokens"):
        gates_of([router], layout, None, SimpleNamespace(size=2), 4)
    (gates,) = gates_of([router], layout, None, Axis("expert"), 4)
    assert gates.weights_CE.shape == (5, 4)


def test_every_decision_draws_its_own_jitter():
    routers = [
        AttributeRouter(16, ExpertConfig(num_experts=4, noise="jitter", jitter=0.5), 0, load_kernels("torch"))
        for _ in range(3)
    ]
    for router in routers:
        router.load_state_dict(routers[0].state_dict())
    layout = plain_layout(torch.ones(1, 5, dtype=torch.bool), vectors=[VISUAL_INPUT], noise=7)
    found = [gates.weights_CE for gates in gates_of(routers, layout, 7, Axis("expert"), 4)]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    again = [gates.weights_CE for gates in gates_of(routers, layout, 7, Axis("expert"), 4)]
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("groups", [2, 500])
def test_slots_of_many_routing_groups_cost_no_more_launches(groups):
    ids_TK, group_T = torch.zeros(1000, 1, dtype=torch.long), torch.arange(1000) % groups
    with Launches() as few, Waits() as waits:
        kept_TK = kept_choices(ids_TK, None, (1,) * groups, 4, group_T)
    assert few.launches < 20 and not waits.seen
    assert kept_TK.sum() == groups and kept_TK[:groups].all()
