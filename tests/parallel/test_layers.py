"""Every parallel layer equals its serial twin: outputs, input gradients, weight gradients (two gloo ranks)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.distributed import run_ranks

WIDTH, HIDDEN, ROWS = 6, 8, 5


def column_then_row(rank: int, tensor: int) -> dict:
    from model.noise import derive
    from parallel.linear import column_linear, row_linear, vocabulary_embedding
    from parallel.mesh import create_mesh
    from parallel.placement import placement_of

    mesh = create_mesh(tensor=tensor)
    layers = {
        "table": vocabulary_embedding(64, WIDTH, mesh),
        "up": column_linear(WIDTH, HIDDEN, mesh),
        "down": row_linear(HIDDEN, WIDTH, mesh),
    }
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            placement = placement_of(parameter)
            generator = torch.Generator().manual_seed(derive(1, name, key))
            with torch.no_grad():
                parameter.copy_(placement.take(torch.randn(placement.shape, generator=generator)))
    x = layers["table"](torch.arange(0, 60, 12)[:, None]).squeeze(1)
    x.retain_grad()
    y = layers["down"](torch.tanh(layers["up"](x)))
    (y**2).sum().backward()
    gradients = {
        f"{name}.{key}": (placement_of(p), p.grad.numpy())
        for name, layer in layers.items()
        for key, p in layer.named_parameters()
    }
    return {"y": y.detach().numpy(), "x_grad": x.grad.numpy(), "gradients": gradients}


def test_tensor_parallel_linears_and_table():
    serial, *_ = run_ranks(1, column_then_row, 1)
    for result in run_ranks(2, column_then_row, 2):
        np.testing.assert_allclose(result["y"], serial["y"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result["x_grad"], serial["x_grad"], rtol=1e-5, atol=1e-5)
        for name, (placement, gradient) in result["gradients"].items():
            expected = placement.take(torch.from_numpy(serial["gradients"][name][1])).numpy()
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def sparse_pair(rank: int, axis: str, path: str, groups: tuple[int, ...]) -> dict:
    """Two banks in a row on this rank's own tokens; `groups` says how many tokens each data rank has. path "merge 0, 3": group 0
    chose expert 0 alone, and group 1 expert 3. "token 3": they travel in three parts; "token slots": all slots do."""
    from model.moe.experts import ExpertLinear, start_merges
    from model.moe.layer import DispatchDecision, MergeDecision
    from model.moe.report import RoutingReport
    from model.moe.use import ExpertUse
    from model.noise import derive
    from parallel.collectives import all_gather
    from parallel.dispatch_plan import agreed_slots, plan_dispatch, plan_in_slots, plan_parts
    from parallel.mesh import create_mesh
    from parallel.placement import placement_of

    mesh = create_mesh(**({axis: 2} if axis else {}))
    report = RoutingReport(ExpertUse(*torch.zeros(2, 3, 4), *torch.zeros(3, 3)), {})
    up = ExpertLinear(WIDTH, HIDDEN, 4, "column", mesh)
    down = ExpertLinear(HIDDEN, WIDTH, 4, "row", mesh)
    for name, bank in (("up", up), ("down", down)):
        for key, parameter in bank.named_parameters():
            placement = placement_of(parameter)
            generator = torch.Generator().manual_seed(derive(2, name, key))
            with torch.no_grad():
                parameter.copy_(placement.take(torch.randn(placement.shape, generator=generator)))
    outputs, input_gradients, gate_gradients = {}, {}, {}
    own = range(mesh.data.rank, len(groups), mesh.data.size)
    for part in own:
        generator = torch.Generator().manual_seed(derive(3, part))
        x = torch.randn(groups[part], WIDTH, generator=generator).requires_grad_()
        ids = torch.randint(0, 4, (groups[part], 1), generator=generator)
        weights = torch.rand(groups[part] if path.startswith("token") else 1, 4, generator=generator)
        if path.startswith("merge "):
            chosen = [int(expert) for expert in path.removeprefix("merge ").split(", ")[part]]
            weights *= torch.zeros(4).index_fill(0, torch.tensor(chosen), 1.0)
        weights.requires_grad_()
        if path.startswith("token"):
            kept, parts = torch.ones_like(ids, dtype=torch.bool), path.removeprefix("token").strip()
            if parts == "slots" and mesh.expert.size > 1:
                plans = (plan_in_slots(ids, kept, 4, mesh.expert, agreed_slots(groups[part], ids.device, mesh.expert)),)
            elif parts and mesh.expert.size > 1:
                plans = plan_parts(ids, kept, 4, mesh.expert, int(parts))
            else:
                plans = (plan_dispatch(ids, kept, 4, mesh.expert),)
            decision = DispatchDecision.of(weights.gather(1, ids), plans, report)
        else:
            gathered = all_gather(weights, mesh.expert)
            has = (gathered.unflatten(-1, (mesh.expert.size, -1)) != 0).any(dim=-1).tolist()
            merges = start_merges((up, down), gathered, has, 1, mesh.expert)
            decision = MergeDecision(merges.totals(), ((0, groups[part], 0),), (0,), report)
        y = decision.apply(down, torch.tanh(decision.apply(up, x)))
        (y**2).sum().backward()
        outputs[part], input_gradients[part], gate_gradients[part] = (
            t.detach().numpy() for t in (y, x.grad, weights.grad)
        )
    gradients = {
        f"{n}.{k}": (placement_of(p), p.grad.numpy())
        for n, b in (("up", up), ("down", down))
        for k, p in b.named_parameters()
    }
    return {"y": outputs, "x": input_gradients, "gate": gate_gradients, "gradients": gradients}


def order_of_parts(rank: int) -> str:
    """What happens when tokens travel in two parts, forward and backward."""
    from parallel import dispatch, dispatch_plan
    from parallel.mesh import create_mesh

    events: list[str] = []

    class Noted(dispatch.Flight):
        def start(self, *call):
            events.append("depart")
            return super().start(*call)

        def wait(self):
            events.append("land")
            return super().wait()

    class Computed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows, number):
            events.append(f"part {number}")
            ctx.number = number
            return 2 * rows

        @staticmethod
        def backward(ctx, grad):
            events.append(f"part {ctx.number}")
            return 2 * grad, None

    dispatch.Flight = Noted
    axis = create_mesh(expert=2).expert
    x = torch.arange(8.0)[:, None].requires_grad_()
    plans = dispatch_plan.plan_parts(torch.tensor([0, 1] * 4)[:, None], None, 2, axis, 2)
    y = dispatch.there_and_back(x, plans, Computed.apply)
    assert torch.equal(y, 2 * x)
    events.append("backward")
    y.sum().backward()
    assert (x.grad == 2).all()
    return ", ".join(events)


def banks_made(rank: int, parts: int) -> dict[str, int]:
    """How often whole banks are made ready for products when tokens travel in parts: of a bank, and of a network's two."""
    from model.moe.experts import ExpertLinear, ExpertMLP
    from model.moe.layer import DispatchDecision
    from parallel.dispatch_plan import plan_parts
    from parallel.mesh import create_mesh

    made: list[None] = []
    updated = ExpertLinear.updated_weight

    def counted(bank: ExpertLinear) -> torch.Tensor:
        made.append(None)
        return updated(bank)

    ExpertLinear.updated_weight = counted  # type: ignore[method-assign]
    mesh, found = create_mesh(expert=2), {}
    plans = plan_parts(torch.tensor([0, 1] * 4)[:, None], None, 2, mesh.expert, parts)
    decision = DispatchDecision.of(torch.ones(8, 1), plans, None)
    bank, network = ExpertLinear(4, 4, 2, "column", mesh), ExpertMLP(4, 8, 2, mesh)
    for parameter in (*bank.parameters(), *network.parameters()):
        torch.nn.init.ones_(parameter)
    for name, experts in (("bank", bank), ("network", network)):
        y = decision.apply(experts, torch.ones(8, 4))
        assert bank._shared is None and (y == y[0]).all()
        found[name] = len(made)
        made.clear()
    return found


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_share_what_is_made_of_a_whole_bank(parts):
    assert run_ranks(2, banks_made, parts) == [{"bank": 1, "network": 2}] * 2


def test_rows_travel_while_others_are_computed():
    expected = (
        "depart, depart, land, part 0, depart, land, part 1, depart, land, land, backward, "
        "depart, depart, land, part 1, depart, land, part 0, depart, land, land"
    )
    assert run_ranks(2, order_of_parts) == [expected] * 2


@pytest.mark.parametrize(
    ("axis", "groups", "path"),
    [
        *(
            (axis, groups, path)
            for axis, groups in (("expert", (5, 3)), ("expert", (4, 1)), ("tensor", (5,)))
            for path in ("token", "merge")
        ),
        # In parts, of which some have no tokens.
        ("expert", (5, 3), "token 2"),
        ("expert", (4, 1), "token 3"),
        ("expert", (5, 3), "token slots"),
        # Each has what it needs; each needs the other's alone; one needs both, and one nothing from the other.
        ("expert", (5, 3), "merge 01, 2"),
        ("expert", (5, 3), "merge 2, 0"),
        ("expert", (5, 3), "merge 12, 3"),
    ],
)
def test_sparse_linears(axis, path, groups):
    """Uneven token counts included. Under expert parallelism the gradient of an expert sums over both ranks' tokens."""
    serial, *_ = run_ranks(1, sparse_pair, "", path, groups)
    for result in run_ranks(2, sparse_pair, axis, path, groups):
        for key in ("y", "x", "gate"):
            for part, value in result[key].items():
                np.testing.assert_allclose(
                    value, serial[key][part], rtol=2e-5, atol=2e-5, err_msg=f"{key} of part {part}"
                )
        for name, (placement, gradient) in result["gradients"].items():
            expected = placement.take(torch.from_numpy(serial["gradients"][name][1])).numpy()
            np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=2e-5, err_msg=name)
