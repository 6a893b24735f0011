"""Which parameters decay, and in which groups the optimizer has them."""

from __future__ import annotations

import pytest
import torch

from parallel.engine import decays, parameter_groups
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
    groups = parameter_groups(objective, 0.05, Mesh())
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len({id(parameter) for parameter in found}) == len(list(objective.parameters())) - 1
    assert all(parameter is not frozen for parameter in found)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    for group in groups:
        expected = {decays(names[id(parameter)], parameter) for parameter in group["params"]}
        assert expected == {group["weight_decay"] == 0.05} and group["weight_decay"] in (0.0, 0.05)
