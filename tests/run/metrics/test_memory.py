"""What made tensors amount to, by family."""

from __future__ import annotations

import json

import torch
from torch import nn

from parallel.checkpoints import Fragment
from parallel.placement import Placement
from run.metrics.memory import Expected, Memory, peak_bytes
from tests.helpers.models import make, tiny

MIB = 1 << 20


class Part(nn.Module):
    """2 MiB of dense weights, 4 MiB of experts, 1 MiB of routers, and 1 MiB that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Parameter(torch.zeros(MIB // 2))
        self.bank = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(MIB))})
        self.router = nn.ParameterDict({"gate": nn.Parameter(torch.zeros(MIB // 4))})
        self.frozen = nn.Parameter(torch.zeros(MIB // 4), requires_grad=False)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Part()


def fragments_of(module: nn.Module, masters: bool) -> list[Fragment]:
    """An optimizer's memory: two moments, and fp32 masters of their own where there are."""
    found = []
    for name, p in module.named_parameters():
        tensors = {"weight": torch.zeros(p.numel()) if masters and p.requires_grad else p.detach().view(-1)}
        if p.requires_grad:
            tensors |= {kind: torch.zeros(p.numel()) for kind in ("exp_avg", "exp_avg_sq")}
        found.append(Fragment(name, Placement(tuple(p.shape)), 0, True, tensors))
    return found


def written(tmp_path, masters: bool) -> dict:
    module = Whole()
    expected = Expected(
        {"weights": 8 * MIB, "total": 64 * MIB}, {"weights": {"dense": 3 * MIB, "experts": 4 * MIB, "routers": MIB}}, 0
    )
    memory = Memory(module, lambda: fragments_of(module, masters), "cpu", tmp_path, expected)
    memory("reduce", None)
    module.block.dense.grad = torch.zeros(MIB // 2)
    module.block.bank["weight"].grad = torch.zeros(MIB)
    memory("backward", None)  # another phase: not looked at
    memory("reduce", None)
    module.block.bank["weight"].grad = None
    memory("reduce", None)  # the most that there was counts
    memory.write()
    first = (tmp_path / "memory.json").read_text()
    module.block.dense.grad = None
    memory.write()
    assert (tmp_path / "memory.json").read_text() == first
    return json.loads(first)


def test_what_a_rank_holds(tmp_path):
    found = written(tmp_path, masters=True)
    unit = 1 / 1024
    families = found["families"]["measured"]
    close = {name: {family: round(v / unit, 2) for family, v in held.items()} for name, held in families.items()}
    assert close == {
        "weights": {"dense": 3, "experts": 4, "routers": 1},
        "gradients": {"dense": 2, "experts": 4, "routers": 0},
        "optimizer": {"dense": 6, "experts": 12, "routers": 3},
    }
    measured = {name: round(value / unit, 2) for name, value in found["measured"].items()}
    assert (measured["weights"], measured["gradients"], measured["optimizer"]) == (8, 6, 21)
    assert {name: round(value / unit) for name, value in found["predicted"].items()} == {"weights": 8, "total": 64}
    assert round(found["families"]["predicted"]["weights"]["experts"] / unit) == 4


def test_masters_that_are_the_weights_are_no_further_memory(tmp_path):
    assert round(written(tmp_path, masters=False)["measured"]["optimizer"] * 1024, 2) == 14


def test_the_peak_holds_what_was_held_once():
    before = peak_bytes("cpu")
    held = torch.ones(96 * MIB // 4)
    now = peak_bytes("cpu")
    del held
    assert 96 * MIB <= now < 1 << 40 and now >= before and peak_bytes("cpu") >= now


def test_a_device_tells_its_own_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {"cuda:1": 5 * MIB}[device])
    assert peak_bytes("cuda:1") == 5 * MIB


def test_families_of_a_network_are_those_of_its_plan(tmp_path):
    objective = make(tiny("attribute"))
    memory = Memory(objective, list, "cpu", tmp_path, Expected({}, {}, 0))
    memory.write()
    weights = json.loads((tmp_path / "memory.json").read_text())["families"]["measured"]["weights"]
    linears = (16 * 48 + 48) + (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16)
    assert weights["experts"] == round(4 * 4 * linears / (1 << 30), 6)
