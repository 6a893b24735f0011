"""Which parameters decay."""

from __future__ import annotations

from model.config import TextTowerConfig
from parallel.engine import decays, parameter_groups
from parallel.mesh import Mesh
from tests.helpers.models import make, tiny


def test_matrices_of_linears_and_experts_decay_and_nothing_else():
    objective = make()
    decaying = {name for name, parameter in objective.named_parameters() if decays(name, parameter)}
    linears = [f"{part}.weight" for part in ("attention.qkv", "attention.out", "ffn.up", "ffn.down")]
    expected = {"tower.embedding.patches.weight", "tower.output.shared.weight"}
    for block, kind in ((0, "bank"), (1, "linear")):
        expected |= {f"tower.encoder.blocks.{block}.{part[: -len('.weight')]}.{kind}.weight" for part in linears}
    assert decaying == expected


def test_groups_hold_every_parameter_once():
    objective = make(tiny("token", text_tower=TextTowerConfig(width=8, depth=1, heads=2, ffn=8)))
    groups = parameter_groups(objective, 0.1, Mesh())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in objective.parameters())
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
