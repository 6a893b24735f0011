"""Compiled passes: nothing breaks inside, few compilations, and the same results."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from model.initialise import initialise
from model.objective import Objective
from parallel.kernels import Kernels, compiled, load_kernels
from parallel.launch import PreflightError
from parallel.mesh import Mesh
from parallel.precision import computing
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.models import tiny

MOST_COMPILATIONS = 6
"""The first norm, the sum at the end of a block and what lies between, with gradients and without; two more where a router has losses."""


def made(config, kernels: Kernels, device: str = "cpu") -> Objective:
    objective = Objective(config, VOCABULARY_SIZE, Mesh(device=device), kernels)
    initialise(objective, 0)
    return objective.to(device)


def pass_of(objective: Objective, task: str, seed: int) -> torch.Tensor:
    """One pass forward and backward -> the loss."""
    device = next(objective.parameters()).device
    losses = objective(BATCHES[task]().located().to(device), seed)
    losses.total.backward()
    return losses.total.detach()


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [("dense", "none"), ("attribute", "selective"), ("token", "none"), ("limoe", "block")]
)
def test_compiled_passes(kind, checkpointing, counter):
    """50 passes of all tasks, and evaluation: equal to what is not compiled, without a break (fullgraph), compiled a few times."""
    config = tiny(kind, activation_checkpointing=checkpointing, layer_scale=1e-1, drop_path=0.1)
    kernels = dataclasses.replace(load_kernels("torch"), fused=functools.partial(compiled, backend=counter))
    objective, plain = made(config, kernels), made(config, load_kernels("torch"))
    tasks = list(BATCHES)
    for step in range(50):
        task = tasks[step % len(tasks)]
        torch.testing.assert_close(pass_of(objective, task, step), pass_of(plain, task, step), rtol=1e-6, atol=1e-6)
    for (name, parameter), other in zip(objective.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        objective(BATCHES["image"]().located())
    assert 3 <= counter.frame_count <= MOST_COMPILATIONS + 2 * (kind == "limoe")


def test_compiled_passes_in_bf16(counter):
    """What products take is bf16 and the stream fp32, as without."""
    config = tiny("attribute", layer_scale=1e-1)
    kernels = dataclasses.replace(load_kernels("torch"), fused=functools.partial(compiled, backend=counter))
    with computing("cpu", torch.bfloat16):
        found, plain = (pass_of(made(config, k), "caption", 1) for k in (kernels, load_kernels("torch")))
    assert counter.frame_count
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


def test_auto_compiles_nothing_on_a_cpu():
    assert load_kernels("torch", "auto").fused(made) is made


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_packed_attention_without_a_gpu_is_refused():
    with pytest.raises(PreflightError, match="attention=packed: needs a GPU with flash attention"):
        load_kernels("torch", "none", "packed")


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(PreflightError, match=r"compile=passes: no C\+\+ compiler: install g\+\+, or set compile=none"):
        load_kernels("torch", "passes")


@pytest.mark.parametrize("kind", ["attribute", "limoe"])
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_real_kernels_give_the_same(device, kind):
    """As compile=passes makes them, by a C++ compiler or by Triton."""
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    config = tiny(kind, layer_scale=1e-1, drop_path=0.1)
    objective, plain = (made(config, load_kernels("torch", compile), device=device) for compile in ("passes", "none"))
    for step, task in enumerate(BATCHES):
        torch.testing.assert_close(pass_of(objective, task, step), pass_of(plain, task, step), rtol=1e-5, atol=1e-5)
    for (name, parameter), other in zip(objective.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
