"""One pass on a device, against the same pass as a CPU computes it without the branches of a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from parallel.mesh import Mesh
from parallel.precision import computing
from tests.helpers.batches import BATCHES
from tests.helpers.devices import DEVICES, launches, take_branches_of_a_gpu
from tests.helpers.models import make, tiny

KINDS = ("dense", "attribute", "token", "limoe", "deepspeed")


def config_of(kind: str, **options) -> ModelConfig:
    """All blocks are sparse, but for the dense kind's. deepspeed: as limoe, its tokens sent by DeepSpeed's layer."""
    experts = {"placement": "none" if kind == "dense" else "all"}
    if kind == "deepspeed":
        return tiny("limoe", {**experts, "backend": "deepspeed"}, **options)
    return tiny(kind, experts, **options)


def pass_of(kind: str, task: str, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and gradients by name."""
    objective = make(config_of(kind, layer_scale=0.1), mesh=Mesh(device=device)).to(device)
    with computing(device, dtype):
        losses = objective(BATCHES[task]().located().to(device), 1)
    losses.total.backward()
    gradients = {name: p.grad.cpu() for name, p in objective.named_parameters() if p.grad is not None}
    return {"loss": losses.total.detach().cpu(), **gradients}


def errors_of(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative distances: of the loss, of all gradients as one vector, and of the worst tensor, where one that is short beside the whole
    counts as a thousandth of it."""
    assert found.keys() == expected.keys()
    lengths = {name: (found[name] - x).norm() for name, x in expected.items()}
    of_all = torch.stack([x.norm() for name, x in expected.items() if name != "loss"]).norm()
    wrong = torch.stack([length for name, length in lengths.items() if name != "loss"]).norm()
    worst = max(float(lengths[name] / max(x.norm(), of_all / 1000)) for name, x in expected.items() if name != "loss")
    return {"loss": float(lengths["loss"] / expected["loss"]), "whole": float(wrong / of_all), "worst": worst}


MOST = {
    torch.float32: {"loss": 1e-5, "whole": 1e-4, "worst": 1e-3},
    torch.bfloat16: {"loss": 1e-2, "whole": 0.2},  # logits are 14 times a cosine of numbers with 8 bits
}


@pytest.mark.parametrize("dtype", MOST, ids=["fp32", "bf16"])
@pytest.mark.parametrize("task", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_equals_the_plain_one_on_a_cpu(kind, task, device, dtype, monkeypatch):
    """Which is computed in fp32, one product for each expert."""
    expected = pass_of(kind, task, "cpu", torch.float32)
    if device == "cpu":
        take_branches_of_a_gpu(monkeypatch)
    errors = errors_of(pass_of(kind, task, device, dtype), expected)
    assert all(errors[name] < most for name, most in MOST[dtype].items()), errors


OPERATORS: dict[str, tuple[str, int, int]] = {
    # of a block, at most: forward, backward
    "dense": ("caption", 27, 62),
    "attribute": ("caption", 51, 142),
    "token": ("caption", 77, 118),
    "limoe": ("retrieval", 98, 153),
    "deepspeed": ("retrieval", 117, 153),
}
KERNELS = 2
"""Of an operator, on average at most: sorting and long sums take several, the others one."""


def launched(kind: str, task: str, device: str, depth: int) -> tuple[int, int]:
    """-> (forward, backward) of a pass in bf16."""
    options = {"layer_scale": 1e-3, "drop_path": 0.1} if kind not in ("limoe", "deepspeed") else {}
    objective = make(config_of(kind, depth=depth, **options), mesh=Mesh(device=device)).to(device)
    batch = BATCHES[task]().located().to(device)

    def forward() -> Tensor:
        with computing(device, torch.bfloat16):
            return objective(batch, 1).total

    forward().backward()  # tables that are made once
    with launches(device) as before:
        loss = forward()
    with launches(device) as after:
        loss.backward()
    return before[0], after[0]


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("device", DEVICES)
def test_launches_of_a_block_in_bf16(kind, device, monkeypatch):
    """A second block's: operators on a CPU, kernels on a GPU. Casts of weights and activations are among them."""
    if device == "cpu":
        take_branches_of_a_gpu(monkeypatch)
    task, *most = OPERATORS[kind]
    first, second = (launched(kind, task, device, depth) for depth in (1, 2))
    found = [two - one for one, two in zip(first, second, strict=True)]
    allowed = [count * (KERNELS if device == "cuda" else 1) for count in most]
    assert all(0 < number <= limit for number, limit in zip(found, allowed, strict=True)), (found, allowed)
