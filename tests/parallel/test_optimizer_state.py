"""What the optimizer remembers, wherever it keeps its count of updates."""

from __future__ import annotations

import pytest
import torch

from parallel.mesh import Mesh
from parallel.optimizer_state import MOMENTS, WholeState


class CountsInGroup(torch.optim.Optimizer):
    """Adam's state as apex keeps it: moments by parameter, the count in the group from the first step on."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {key: torch.zeros_like(parameter) for key in MOMENTS}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, CountsInGroup])
def test_a_restored_count_goes_on(optimizer):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    adam = optimizer([parameter])
    memory = WholeState(adam, Mesh())
    assert memory.updates == 0
    memory.prepare_restore(500, averages=False)
    assert memory.updates == 500
    adam.step()
    own = adam.param_groups[0] if optimizer is CountsInGroup else adam.state[parameter]
    assert own["step"] == memory.updates == 501
