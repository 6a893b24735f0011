"""DeepSpeed's MoE layer behind the same decisions and experts: by hand, against our own exchange, and with DeepSpeed's gate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model.moe.config import ExpertConfig
from model.moe.experts import ExpertMLP
from model.moe.layer import DeepSpeedPath, SlotDecision, make_path
from model.moe.report import summed_up
from parallel.collectives import Axis
from parallel.deepspeed_moe import plan_slots, through_deepspeed
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from tests.helpers.distributed import run_ranks
from tests.helpers.layouts import plain_layout
from tests.helpers.parity import ParityRun, logical_gradients, logical_weights, merged_losses, run_job
from tests.parallel.test_parity import assert_equal_runs

WIDTH, HIDDEN, EXPERTS = 6, 8, 4
IDS = torch.tensor([[2, 0], [2, 1], [0, 2]])
KEPT = torch.tensor([[True, True], [False, True], [True, True]])
WEIGHTS = torch.tensor([[0.5, 0.25], [0.0, 2.0], [1.0, 4.0]])


def test_slots_by_hand():
    # Expert 0: tokens 0 and 2. Expert 1: token 1. Expert 2: tokens 0 and 2, as token 1 found no slot.
    plan = plan_slots(IDS, WEIGHTS, KEPT, EXPERTS, Axis("expert"))
    assert plan.expert_KT.tolist() == [[2, -1, 0], [0, 1, 2]]
    assert [[plan.place_KT[k, t].item() for t in (0, 2)] for k in range(2)] == [[0, 1], [0, 1]]
    assert plan.place_KT[1, 1] == 0 and plan.slots == 2
    assert plan_slots(IDS, WEIGHTS, KEPT, EXPERTS, Axis("expert"), slots=3).slots == 3
    assert plan_slots(IDS[:0], WEIGHTS[:0], None, EXPERTS, Axis("expert")).slots == 1


def test_a_layer_by_hand():
    """Expert e adds 10 e; rows it gets beyond its tokens are zeros, and count for nothing."""
    x = torch.tensor([[1.0], [2.0], [3.0]])
    seen = []

    def experts(x_RD, groups):
        seen.append((x_RD.flatten().tolist(), groups.ends_e.tolist(), groups.rows))
        return x_RD + 10.0 * groups.expert_R[:, None]

    y = through_deepspeed(x, plan_slots(IDS, WEIGHTS, KEPT, EXPERTS, Axis("expert")), experts)
    assert seen == [([1, 3, 2, 0, 1, 3, 0, 0], [2, 4, 6, 8], 8)]
    assert y.flatten().tolist() == [0.5 * 21 + 0.25 * 1, 2.0 * 12, 1.0 * 3 + 4.0 * 23]


def decided(backend: str, **options) -> dict[str, torch.Tensor]:
    """A router and whole networks on 24 tokens in two routing groups: outputs, and all gradients."""
    config = ExpertConfig(router="token", unit="mlp", num_experts=EXPERTS, backend=backend, **options)
    path = make_path(WIDTH, config, 0, Mesh(), load_kernels("torch"))
    experts = ExpertMLP(WIDTH, HIDDEN, EXPERTS, Mesh())
    generator = torch.Generator().manual_seed(0)
    parameters = dict(path.named_parameters()) | dict(experts.named_parameters())
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    x = torch.randn(24, WIDTH, generator=generator).requires_grad_()
    layout = plain_layout(torch.ones(2, 12, dtype=torch.bool), noise=5)
    decision = path(x, layout, 7)
    assert isinstance(path, DeepSpeedPath) == isinstance(decision, SlotDecision) == (backend == "deepspeed")
    y = decision.apply(experts, x)
    (y.square().sum() + sum(decision.report.losses.values())).backward()
    use = summed_up([decision.report], layout)[0].use
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    return {"y": y, "x": x.grad, "taken": use.taken_ME, "asked": use.asked_M, "pairs": use.pairs_M, **gradients}


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": 3, "renormalise": False},
        {"top_k": 1, "capacity_factor": 0.5},
        {"top_k": 2, "capacity_factor": 0.5, "group_size": 1, "priority": "sum"},
        {"top_k": 2, "random_second": True},
        {"top_k": 2, "capacity_factor": 8.0, "noise": "gumbel"},
    ],
    ids=str,
)
def test_both_backends_are_equal_on_one_rank(options):
    own, theirs = (decided(backend, **options) for backend in ("own", "deepspeed"))
    for name, expected in own.items():
        torch.testing.assert_close(theirs[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    thinned = bool(own["taken"].sum() < own["pairs"].sum())
    assert thinned == (options.get("capacity_factor") == 0.5 or "random_second" in options)


# -- DeepSpeed's whole layer, its gate included ------------------------------------------------------------------------


def with_their_gate(rank: int, k: int, factor: float, expert: int, backend: str) -> dict[str, np.ndarray]:
    """MoE of DeepSpeed and ours with the same weights, on this rank's tokens: outputs, gradients, and which tokens kept all choices."""
    from deepspeed.moe.layer import MoE

    from parallel.mesh import create_mesh

    mesh = create_mesh(expert=expert)
    local = EXPERTS // expert
    options = {"noise": "none", "priority": "none", "capacity_factor": factor, "backend": backend}
    config = ExpertConfig(router="token", unit="mlp", num_experts=EXPERTS, top_k=k, **options)
    path = make_path(WIDTH, config, 0, mesh, load_kernels("torch"))
    ours = ExpertMLP(WIDTH, HIDDEN, EXPERTS, mesh)
    network = torch.nn.Sequential(torch.nn.Linear(WIDTH, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, WIDTH))
    theirs = MoE(
        WIDTH, network, EXPERTS, expert, k, factor or 1.0, min_capacity=1, drop_tokens=factor > 0, use_rts=False,
        top2_2nd_expert_sampling=False,
    )  # fmt: skip
    theirs.set_deepspeed_parallelism()
    banks = [getattr(linear, key) for linear in (ours.up, ours.down) for key in ("weight", "bias")]
    networks = theirs.deepspeed_moe.experts.deepspeed_experts
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for number, bank in enumerate(banks):
            whole = 0.4 * torch.randn(EXPERTS, *bank.shape[1:], generator=generator)
            bank.copy_(whole[mesh.expert.rank * local : (mesh.expert.rank + 1) * local])
            for one, expert_network in zip(bank, networks, strict=True):
                list(expert_network.parameters())[number].copy_(one)
        torch.nn.init.normal_(path.router.gate.weight, generator=generator)
        theirs.deepspeed_moe.gate.wg.weight.copy_(path.router.gate.weight)
    tokens = 16
    x = torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(1 + rank))
    layout = plain_layout(torch.ones(1, tokens, dtype=torch.bool))
    decision = path(x, layout, None)
    routing = path.router(x, layout, None)
    whole_T = torch.ones(tokens, dtype=torch.bool) if routing.kept_TK is None else routing.kept_TK.all(dim=1)
    found = {"whole": whole_T.numpy()}
    for name, y, parameters, gate in (
        ("ours", decision.apply(ours, x), [[*bank.unbind()] for bank in banks], path.router.gate.weight),
        ("theirs", theirs(x)[0], None, theirs.deepspeed_moe.gate.wg.weight),
    ):
        (y[whole_T] ** 2).sum().backward()
        if parameters is None:
            gradients = [p.grad for one in networks for p in one.parameters()]
        else:
            gradients = [bank.grad[one] for one in range(local) for bank in banks]
        found |= {
            f"{name} {number}": g.numpy() for number, g in enumerate((y[whole_T].detach(), gate.grad, *gradients))
        }
    return found


@pytest.mark.parametrize("expert", [1, 2])
@pytest.mark.parametrize("backend", ["own", "deepspeed"])
@pytest.mark.parametrize(("k", "factor"), [(1, 8.0), (2, 0.0), (2, 0.75)])
def test_equal_to_deepspeed_with_its_gate_where_conventions_agree(k, factor, backend, expert):
    """Slots by the order of tokens, no noise. A token of two choices that lost one is left out: DeepSpeed divides by what was kept, we by
    both. With one choice, DeepSpeed takes any of the tokens that are too many."""
    for found in run_ranks(expert, with_their_gate, k, factor, expert, backend):
        assert found["whole"].all() == (factor != 0.75) and found["whole"].sum() >= 4
        for number in range(2 + 4 * EXPERTS // expert):
            np.testing.assert_allclose(
                found[f"ours {number}"], found[f"theirs {number}"], rtol=1e-5, atol=1e-5, err_msg=f"{number}"
            )


# -- the whole trainer ------------------------------------------------------------------------------------------------

DEEPSPEED = (("backend", "deepspeed"),)
TOP_2 = (("unit", "mlp"), ("top_k", 2), ("capacity_factor", 0.7))


@pytest.mark.parametrize(
    ("router", "experts", "layout"),
    [
        ("limoe", (), {}),
        ("limoe", (), {"expert": 2}),
        ("limoe", (("capacity_factor", 0.0),), {"expert": 2}),
        ("token", TOP_2, {"expert": 2}),
        ("context", TOP_2, {"expert": 2, "model": (("activation_checkpointing", "block"),)}),
        ("token", TOP_2, {"expert": 2, "model": (("activation_checkpointing", "selective"),)}),
    ],
)
def test_steps_equal_those_of_our_own_exchange(router, experts, layout):
    """Three steps whose two ranks have different tasks, so that slots differ: losses, gradients, norms, weights by name."""
    job = ParityRun(router=router, experts=experts, sgd=True)
    own = run_ranks(1, run_job, job)
    assert_equal_runs(own, run_ranks(2, run_job, dataclasses.replace(job, experts=experts + DEEPSPEED, **layout)))


@pytest.mark.parametrize(("first", "then"), [((), DEEPSPEED), (DEEPSPEED, ())], ids=["own first", "deepspeed first"])
def test_checkpoints_of_one_backend_go_on_with_the_other(tmp_path, first, then):
    job = ParityRun(router="limoe", steps=4, adam_eps=1e-2, lr=1e-3)
    whole = run_ranks(1, run_job, job)
    saved = dataclasses.replace(job, save_to=str(tmp_path), save_at=2, expert=2)
    run_ranks(2, run_job, dataclasses.replace(saved, steps=2, experts=first))
    resumed = run_ranks(2, run_job, dataclasses.replace(saved, experts=then))
    late = {key: value for key, value in merged_losses(whole).items() if key[0] >= 2}
    assert merged_losses(resumed) == pytest.approx(late, rel=1e-5)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        left, right = logical_weights(whole, kind), logical_weights(resumed, kind)
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(right[name], left[name], rtol=1e-4, atol=1e-6, err_msg=f"{kind} of {name}")
    assert any(np.any(g) for name, g in logical_gradients(resumed, 1).items() if ".experts." in name)


def test_its_own_resume_is_exact(tmp_path):
    job = ParityRun(router="limoe", experts=DEEPSPEED, steps=3, expert=2)
    whole = run_ranks(2, run_job, job)
    saved = dataclasses.replace(job, save_to=str(tmp_path), save_at=2)
    run_ranks(2, run_job, dataclasses.replace(saved, steps=2))
    resumed = run_ranks(2, run_job, saved)
    left, right = logical_weights(whole), logical_weights(resumed)
    assert all(np.array_equal(left[name], right[name]) for name in left)
