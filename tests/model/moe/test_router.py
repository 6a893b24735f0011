"""What each router looks at, noise policies, slots of routing groups, settings for evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.attributes import TEXT_INPUT, VISUAL_INPUT
from data.batch import Modality
from model.moe import router as router_module
from model.moe.config import AuxiliaryConfig, ExpertConfig
from model.moe.gates import gates_of
from model.moe.layer import DispatchPath, make_path
from model.moe.report import summed_up
from model.moe.router import GROUP_ROUTERS, TOKEN_ROUTERS, drawn_at_once
from model.moe.use import stacked
from parallel.collectives import Axis
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.precision import allow_tf32
from run.metrics.expert_use import figures
from tests.helpers.layouts import Span, joined, plain_layout, tokens_of

WIDTH = 8


def router(name: str, num_tasks: int = 3, seed: int = 0, **options):
    config = ExpertConfig(**{"router": name, "num_experts": 4, **options})
    module = {**GROUP_ROUTERS, **TOKEN_ROUTERS}[name](WIDTH, config, num_tasks, load_kernels("torch"))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    return module


def states(tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def full(rows: int, length: int, *spans: Span, **options):
    """Of a pass that may draw."""
    return plain_layout(torch.ones(rows, length, dtype=torch.bool), *spans, **{"noise": 5, **options})


def two_groups(task: int = 0):
    return full(
        1,
        4,
        Span(0, 2, 0),
        Span(2, 4, 1),
        vectors=[VISUAL_INPUT, TEXT_INPUT],
        modalities=[Modality.IMAGE, 0],
        task=task,
    )


def test_modality_router_asks_for_the_modality_alone():
    weights, _ = router("modality")(joined(two_groups(0), two_groups(1)), None)
    assert torch.equal(weights[:2], weights[2:]) and not torch.equal(weights[0], weights[1])
    noisy, _ = router("modality", noise_std=1.0)(joined(two_groups(0), two_groups(1), noise=5), 7)
    assert not torch.equal(noisy[:2], noisy[2:])  # a draw for each group


def test_task_router_asks_for_the_task_alone():
    weights, _ = router("task")(joined(two_groups(0), two_groups(1)), None)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_task_specific_gives_each_task_its_expert():
    weights, entropy = router("task_specific")(joined(two_groups(0), two_groups(2)), 7)
    assert entropy.tolist() == [0] * 4
    assert weights.tolist() == [[1, 0, 0, 0]] * 2 + [[0, 0, 1, 0]] * 2


def test_token_router_sees_the_token_alone_and_context_router_its_sequence():
    x, other = states(6), states(6)
    other[2] += 5.0
    for name in ("token", "context"):
        for pooling in ("mean", "attention") if name == "context" else ("mean",):
            module = router(name, pooling=pooling, auxiliary=AuxiliaryConfig(importance=1.0))
            first, second = (module(value, full(2, 3), None).weights_TK for value in (x, other))
            assert torch.equal(first[3:], second[3:])  # the other sequence
            assert torch.equal(first[:2], second[:2]) == (name == "token"), (name, pooling)


def test_context_leaves_out_words_that_come_later():
    x, other = states(4), states(4)
    other[3] += 5.0
    layout = full(1, 4)
    layout.sequences[0].tokens.prefix_L[2:] = False
    module = router("context")
    first, second = (module(value, layout, None).weights_TK for value in (x, other))
    assert torch.equal(first[:3], second[:3])


def test_rows_of_other_lengths_do_not_change_a_context():
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    for pooling in ("mean", "attention"):
        module = router("context", pooling=pooling)
        layout = plain_layout(valid)
        together = module(tokens_of(x, layout), layout, None).weights_TK
        torch.testing.assert_close(together[:3], module(x[0, :3], full(1, 3), None).weights_TK)
        torch.testing.assert_close(together[3:], module(x[1], full(1, 4), None).weights_TK)


def test_gumbel_noise_selects_and_clean_probabilities_weigh():
    x, layout = states(64), full(1, 64)
    module = router("token", noise="gumbel", top_k=1)
    clean, noisy = module(x, layout, None), module(x, layout, 3)
    assert not torch.equal(clean.expert_ids_TK, noisy.expert_ids_TK)
    probs = (x @ module.gate.weight.T).softmax(-1)
    torch.testing.assert_close(noisy.weights_TK, probs.gather(1, noisy.expert_ids_TK))
    # Gumbel noise samples from the probabilities: over many draws expert e is chosen with probability p_e.
    token = x[:1].expand(20_000, WIDTH)
    drawn = module(token, full(1, 20_000), 5).expert_ids_TK[:, 0]
    torch.testing.assert_close(drawn.bincount(minlength=4) / 20_000, probs[0].detach(), atol=0.015, rtol=0)


def test_jitter_scales_the_gate_input_a_little():
    x, layout = states(16), full(1, 16)
    clean = router("token", noise="jitter")(x, layout, None).weights_TK
    jittered = router("token", noise="jitter")(x, layout, 3).weights_TK
    assert not torch.equal(clean, jittered)
    assert torch.equal(clean, router("token", noise="jitter", jitter=0.0)(x, layout, 3).weights_TK)


def test_vmoe_noise_has_its_standard_deviation():
    module = router("token", noise_std=2.0, top_k=4, renormalise=False)
    torch.nn.init.zeros_(module.gate.weight)
    routing = module(states(20_000), full(1, 20_000), 3)
    probs = torch.zeros_like(routing.weights_TK).scatter(1, routing.expert_ids_TK, routing.weights_TK)
    logits = probs.log() - probs.log().mean(dim=1, keepdim=True)
    assert logits.std().item() == pytest.approx(2.0 / 4 * (3 / 4) ** 0.5, rel=0.02)  # less the mean of four


def test_each_routing_group_has_its_own_slots():
    module = router("token", top_k=1, capacity_factor=1.0, group_size=1, noise="none")
    torch.nn.init.zeros_(module.gate.weight)  # a tie: everyone asks for expert 0
    kept = module(states(16), full(2, 8), 1).kept_TK
    assert kept.squeeze(1).tolist() == ([True] * 2 + [False] * 6) * 2  # 8 / 4 slots in each sequence
    whole = router("token", top_k=1, capacity_factor=1.0, noise="none")
    torch.nn.init.zeros_(whole.gate.weight)
    assert whole(states(16), full(2, 8), 1).kept_TK.squeeze(1).tolist() == [True] * 4 + [False] * 12


def test_sequences_of_a_pass_compete_for_the_same_slots():
    """LIMoE: confident tokens take the slots, whichever modality they are of."""
    module = router("token", top_k=1, capacity_factor=1.0, noise="none")
    torch.nn.init.zeros_(module.gate.weight)
    with torch.no_grad():
        module.gate.weight[0, 0] = 1.0
    x = torch.zeros(8, WIDTH)
    x[:6, 0], x[6:, 0] = 1.0, 9.0  # all ask for expert 0, texts with more confidence
    layout = joined(full(1, 6, modalities=[Modality.IMAGE]), full(1, 2, modalities=[Modality.TEXT]), noise=5)
    assert module(x, layout, 1).kept_TK.squeeze(1).tolist() == [False] * 6 + [True] * 2
    in_order = router("token", top_k=1, capacity_factor=1.0, noise="none", priority="none")
    in_order.load_state_dict(module.state_dict())
    assert in_order(x, layout, 1).kept_TK.squeeze(1).tolist() == [True] * 2 + [False] * 6


def test_evaluation_has_its_own_k_and_capacity():
    options = {"top_k": 1, "eval_top_k": 2, "capacity_factor": 0.5, "eval_capacity_factor": 8.0, "noise": "none"}
    module = router("token", **options)
    training, evaluation = (module(states(16), full(1, 16), noise) for noise in (1, None))
    assert training.kept_TK.shape == (16, 1) and not training.kept_TK.all()
    assert evaluation.kept_TK.shape == (16, 2) and evaluation.kept_TK.all()
    assert router("token", top_k=1, noise="none")(states(16), full(1, 16), 1).kept_TK is None
    assert router("attribute", eval_top_k=1)(two_groups(), None)[0].count_nonzero(dim=1).tolist() == [1, 1]
    assert router("attribute", eval_top_k=1)(two_groups(), 1)[0].count_nonzero(dim=1).tolist() == [2, 2]


def test_random_second_asks_with_twice_its_weight():
    module = router("token", random_second=True, noise="none")
    with torch.no_grad():  # probabilities 0.8 and 0.2 of the two best, so a second choice is asked in 0.4 of the cases
        module.gate.weight.zero_()
        module.gate.weight[:, 0] = torch.tensor([0.8, 0.2, 1e-9, 1e-9]).log()
    x = torch.zeros(20_000, WIDTH)
    x[:, 0] = 1.0
    routing = module(x, full(1, 20_000), 1)
    assert routing.kept_TK[:, 0].all()
    assert routing.kept_TK[:, 1].float().mean().item() == pytest.approx(0.4, abs=0.015)
    assert module(x, full(1, 20_000), None).kept_TK is None


def test_report_counts_by_modality():
    config = ExpertConfig(router="token", num_experts=4, top_k=1, capacity_factor=1.0, priority="none")
    path = make_path(WIDTH, config, 0, Mesh(), load_kernels("torch"))
    assert isinstance(path, DispatchPath)
    torch.nn.init.zeros_(path.router.gate.weight)
    layout = joined(full(1, 6, modalities=[Modality.IMAGE]), full(1, 2, modalities=[Modality.TEXT]))
    (report,) = summed_up([path(states(8), layout, None).report], layout)
    assert report.use.asked_M.tolist() == [2, 6, 0]
    assert report.use.taken_ME.tolist() == [[0] * 4, [2, 0, 0, 0], [0] * 4]
    assert report.use.weight_ME.tolist() == [[0] * 4, [0.5, 0, 0, 0], [0] * 4]  # raw: 1 / 4 each
    assert report.use.entropy_M.tolist() == pytest.approx([2 * math.log(4), 6 * math.log(4), 0])


def test_second_choices_that_are_not_asked_are_no_failures():
    """Without a capacity all that is asked is taken; the entropy stays the mean over tokens."""
    config = ExpertConfig(router="token", num_experts=4, random_second=True, noise="none")
    path = make_path(WIDTH, config, 0, Mesh(), load_kernels("torch"))
    assert isinstance(path, DispatchPath)
    torch.nn.init.zeros_(path.router.gate.weight)
    with torch.no_grad():  # 0.8 and 0.2 of the two best: a second choice is asked in 0.4 of the cases
        path.router.gate.weight[:, 0] = torch.tensor([0.8, 0.2, 1e-9, 1e-9]).log()
    layout = full(1, 100, modalities=[Modality.IMAGE])
    routing = path.router(torch.ones(100, WIDTH), layout, 1)
    use = summed_up([routing], layout)[0].use
    torch.testing.assert_close(use.taken_ME.sum(dim=1), use.asked_M)
    assert use.pairs_M.tolist() == [0, 200, 0] and 40 < use.unasked_M[Modality.IMAGE] < 80
    assert use.unasked_M[Modality.IMAGE] == (~routing.asked_TK).sum()
    found = figures(stacked([use]))
    assert found["success/image"] == 1 and sum(found["expert_load"][0]) == pytest.approx(1, abs=1e-3)
    assert found["router_entropy"] == [pytest.approx(entropy_of(0.8, 0.2), abs=1e-3)]


def entropy_of(*shares: float) -> float:
    return -sum(share * math.log(share) for share in shares)


def test_groups_report_the_weights_and_the_entropy_of_their_gate():
    module = router("modality", top_k=2)
    torch.nn.init.zeros_(module.gate.weight)
    (gates,) = gates_of([module], full(1, 6, modalities=[Modality.IMAGE]), None, Axis("expert"), 1)
    report = gates.report
    assert report.use.taken_ME.tolist() == [[0] * 4, [6, 6, 0, 0], [0] * 4]
    assert report.use.weight_ME.tolist() == [[0] * 4, [3, 3, 0, 0], [0] * 4]
    assert report.use.asked_M.tolist() == [0, 12, 0]
    assert report.use.entropy_M.tolist() == pytest.approx([0, 12 * math.log(4), 0])


@pytest.mark.parametrize("name", ["token", "context"])
def test_a_pass_without_tokens_routes_nothing(name):
    every = AuxiliaryConfig(importance=1, load=1, z=1, switch=1, local_text=1, local_visual=1, global_text=1)
    module = router(name, auxiliary=every, capacity_factor=1.0)
    empty = plain_layout(torch.zeros(1, 3, dtype=torch.bool), noise=5)
    routing = module(states(0), empty, 1)
    assert routing.weights_TK.shape == (0, 2)
    assert all(torch.isfinite(loss) for loss in routing.losses.values()) and tuple(routing.losses) == every.names


def test_only_losses_that_have_a_weight_are_computed():
    layout = joined(full(1, 3, modalities=[Modality.IMAGE]), full(1, 2, modalities=[Modality.TEXT]), noise=5)
    module = router("token", auxiliary=AuxiliaryConfig(z=0.25, local_text=1.0, global_visual=0.5))
    found = module(states(5), layout, 1).losses
    logits = states(5) @ module.gate.weight.T
    assert tuple(found) == ("z", "local_text", "global_visual")
    torch.testing.assert_close(found["z"], logits.logsumexp(1).square().mean())
    torch.testing.assert_close(found["local_text"], torch.distributions.Categorical(logits=logits[3:]).entropy().mean())
    mean = torch.distributions.Categorical(probs=logits[:3].softmax(1).mean(0)).entropy()
    torch.testing.assert_close(found["global_visual"], (math.log(4) - mean).clamp(min=0))
    sum(found.values()).backward()
    assert module.gate.weight.grad.any()


@pytest.mark.parametrize("num_experts", [4, 64, 600])
def test_many_decisions_draw_numbers_of_their_own(num_experts):
    """Some at once: 128 decisions of four experts, 8 of 64, one of 600."""
    config, layout = ExpertConfig(router="token", num_experts=num_experts), full(1, 5)
    numbers = drawn_at_once(config, 20, 7, layout)
    drawn = torch.cat([of_one.flatten() for of_one in numbers])
    assert [of_one.shape for of_one in numbers] == [(5, num_experts)] * 20
    assert len(drawn.unique()) > 0.99 * len(drawn)
    assert drawn_at_once(config, 3, None, layout) == [None] * 3  # evaluation
    assert drawn_at_once(dataclasses.replace(config, noise="jitter"), 3, 7, layout) == [None] * 3


def test_a_pass_that_drew_at_once_uses_its_numbers():
    module, x, layout = router("token", noise_std=1.0), states(5), full(1, 5)
    numbers = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    given, own = module(x, layout, 1, numbers), module(x, layout, 1)
    noisy = x @ module.gate.weight.T + numbers / 4
    assert torch.equal(given.expert_ids_TK, noisy.argsort(dim=1, descending=True)[:, :2])
    assert not torch.equal(given.weights_TK, own.weights_TK)


@pytest.mark.parametrize(
    ("noise", "logits"),
    [
        # Features (1, 2) through the weights (1, 0) and (0, 1): logits 1 and 2.
        ("none", [1.0, 2.0]),
        ("jitter", [1.0 * 1.1, 2.0 * 1.1]),  # a draw of 1 scales by 1 + 0.1 (2 - 1)
        ("vmoe", [1.0 + 3.0 * 0.8 / 2, 2.0 + 3.0 * 0.8 / 2]),  # a draw of 3 at a deviation of 0.8 / 2 experts
    ],
)
def test_noise_by_hand(noise, logits, monkeypatch):
    monkeypatch.setattr(router_module, "uniform", lambda key, counter: torch.ones(counter.shape))
    monkeypatch.setattr(router_module, "normal", lambda key, counter: torch.full(counter.shape, 3.0))
    gate = torch.nn.Linear(2, 2, bias=False)
    gate.weight.data.copy_(torch.eye(2))
    config = ExpertConfig(num_experts=2, noise=noise, jitter=0.1, noise_std=0.8)
    weighing, selection, clean, noisy = router_module._logits(
        torch.tensor([[1.0, 2.0]]), gate, config, 7, torch.zeros(1, dtype=torch.long)
    )
    assert clean.tolist() == [[1.0, 2.0]] and selection is None
    assert noisy[0].tolist() == pytest.approx(logits)
    assert weighing[0].tolist() == pytest.approx(logits)


def test_gumbel_noise_by_hand(monkeypatch):
    """-log(-log u) is 1 for u = exp(-exp(-1)); it ranks the experts, and the clean probabilities weigh."""
    monkeypatch.setattr(router_module, "uniform", lambda key, counter: torch.full(counter.shape, 0.692201))
    gate = torch.nn.Linear(2, 2, bias=False)
    gate.weight.data.copy_(torch.eye(2))
    config = ExpertConfig(num_experts=2, noise="gumbel")
    weighing, selection, _, noisy = router_module._logits(
        torch.tensor([[1.0, 2.0]]), gate, config, 7, torch.zeros(1, dtype=torch.long)
    )
    assert noisy[0].tolist() == pytest.approx([2.0, 3.0], abs=1e-4) and torch.equal(selection, noisy)
    assert weighing[0].tolist() == [1.0, 2.0]


def test_many_gates_draw_numbers_of_their_own(monkeypatch):
    """Of two groups side by side, whose counters are 4,096 numbers apart: two decisions of 2,048 experts fit between them and are drawn
    at once, three are drawn one by one."""
    drawn: list[torch.Tensor] = []

    def normal(key, counter):
        drawn.append(key + counter.flatten())
        return torch.zeros(counter.shape)

    monkeypatch.setattr(router_module, "normal", normal)
    for decisions, times in ((2, 1), (3, 3)):
        drawn.clear()
        modules = [router("modality", num_experts=2048)] * decisions
        gates_of(modules, two_groups(), 7, Axis("expert"), 4)
        assert len(drawn) == times
        assert len(torch.cat(drawn).unique()) == 2 * 2048 * decisions


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    allow_tf32()
    yield
    torch.backends.cuda.matmul.fp32_precision = before


class Products(TorchDispatchMode):
    """seen: in which numbers a GPU would multiply matrices of fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.split("::")[1] in ("mm", "addmm", "bmm", "baddbmm"):
            self.seen.append(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "pooling", "products"),
    [("token", "mean", 1), ("context", "mean", 2), ("context", "attention", 3), ("attribute", "mean", 2)],
)
def test_products_of_routers_are_fp32_where_others_may_be_tf32(name, pooling, products, tf32):
    """Forward and backward, of the gate, the pooling and its query, or the bits of attributes."""
    module = router(name, pooling=pooling)
    x, layout = states(6).requires_grad_(), full(2, 3)
    with Products() as forward:
        weights = module(x, layout, None).weights_TK if name in TOKEN_ROUTERS else module(layout, None)[0]
    with Products() as backward:
        weights.square().sum().backward()
    assert forward.seen == ["ieee"] * products and set(backward.seen) == {"ieee"}


@pytest.mark.parametrize("noise", [None, 7])
@pytest.mark.parametrize("name", ["attribute", "modality", "task", "task_specific"])
def test_gates_of_a_pass_are_those_of_its_routers(name, noise, monkeypatch):
    """In one product as one by one, with gradients; where there is noise, it is another one for each decision."""
    modules = [router(name, seed=seed, noise="none" if noise is None else "vmoe", noise_std=1.0) for seed in range(3)]
    layout = joined(two_groups(1), two_groups(2), noise=5)
    gates = gates_of(modules, layout, noise, Axis("expert"), 4)
    weights_NCE = torch.stack([of_one.weights_CE for of_one in gates])
    alone_NCE = torch.stack([module(layout, noise)[0] for module in modules])
    if noise is None or name == "task_specific":
        torch.testing.assert_close(weights_NCE, alone_NCE)
    else:
        assert not torch.allclose(weights_NCE, alone_NCE)
        same = [modules[0]] * 2
        first, second = (of_one.weights_CE for of_one in gates_of(same, layout, noise, Axis("expert"), 4))
        assert not torch.allclose(first, second)
    if name != "task_specific" and noise is None:
        factor = torch.randn(weights_NCE.shape, generator=torch.Generator().manual_seed(1))
        parameters = [parameter for module in modules for parameter in module.parameters()]
        for one, other in zip(
            torch.autograd.grad((weights_NCE * factor).sum(), parameters),
            torch.autograd.grad((alone_NCE * factor).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
