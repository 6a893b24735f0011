"""Which parameters decay, and in which groups the optimizer has them."""

from __future__ import annotations

import pytest
import torch

from parallel.config import OptimizerConfig
from parallel.engine import decays, layer_rates, parameter_groups
from parallel.mesh import Mesh
from tests.helpers.models import make, tiny


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("tower.encoder.blocks.0.attention.qkv.linear.weight", (4, 4), True),
        ("tower.encoder.blocks.0.ffn.up.bank.weight", (2, 4, 4), True),
        ("tower.embedding.patches.weight", (4, 4), True),
        ("head.weight", (4, 4), True),
        ("tower.encoder.blocks.0.attention.qkv.linear.bias", (4,), False),
        ("tower.encoder.blocks.0.ffn.up.bank.bias", (2, 4), False),
        ("tower.encoder.blocks.0.attention_norm.weight", (4,), False),
        ("tower.encoder.blocks.0.ffn_path.router.gate.weight", (4, 4), False),
        ("tower.embedding.tokens.weight", (4, 4), False),
        ("log_scales.text", (1,), False),
    ],
)
def test_matrices_decay_and_tables_and_routers_do_not(name, shape, expected):
    assert decays(name, torch.nn.Parameter(torch.zeros(shape))) is expected


def test_every_trained_parameter_is_in_one_group():
    objective = make(tiny())
    frozen = dict(objective.named_parameters())["tower.embedding.tokens.weight"].requires_grad_(False)
    groups = parameter_groups(objective, OptimizerConfig(weight_decay=0.05), Mesh())
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len({id(parameter) for parameter in found}) == len(list(objective.parameters())) - 1
    assert all(parameter is not frozen for parameter in found)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    for group in groups:
        expected = {decays(names[id(parameter)], parameter) for parameter in group["params"]}
        assert expected == {group["weight_decay"] == 0.05} and group["weight_decay"] in (0.0, 0.05)


def test_rates_fall_towards_the_input():
    names = ["log_scales.text", "tower.output.shared.weight", "tower.embedding.tokens.weight"]
    blocks = [f"tower.encoder.blocks.{i}.ffn.up.linear.weight" for i in range(3)]
    text = ["text_tower.encoder.blocks.0.ffn_norm.weight", "text_tower.embedding.norm.weight"]
    rates = layer_rates([*names, *blocks, *text], 0.5)
    assert [rates[name] for name in names] == [1.0, 1.0, 0.0625]
    assert [rates[name] for name in blocks] == [0.125, 0.25, 0.5]
    assert [rates[name] for name in text] == [0.5, 0.25]
    groups = parameter_groups(make(tiny()), OptimizerConfig(layer_decay=0.5), Mesh())
    assert {group["rate"] for group in groups} == {1.0, 0.5, 0.25, 0.125}
