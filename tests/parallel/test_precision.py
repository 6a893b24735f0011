"""Precision: what is chosen, fp16's loss scale, and an audit of the numbers of every operator of a pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.attributes import NUM_ATTRIBUTES
from model.initialise import initialise
from model.objective import Objective
from parallel.kernels import load_kernels
from parallel.launch import PreflightError
from parallel.mesh import Mesh
from parallel.precision import FIRST_SCALE, GROWS_AFTER, LossScale, computing, could_be_bf16, dtype_of, exact_linear
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.devices import take_branches_of_a_gpu
from tests.helpers.models import tiny

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "matmul", "linear")
EXACT = ("_softmax", "_log_softmax", "native_layer_norm", "logsumexp", "nll_loss_forward", "special_entr")
EXPERTS, SPACE = 97, 44
"""Numbers that no other dimension of the tiny model has, so that operands of routers and of scores are known by their shapes."""
WIDTH, HEADS, TEXT = 24, 2, 9
"""Neither heads nor texts are as wide as a router's bits of attributes."""


SPARSE: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("attribute", {"placement": "none"}),
    "attribute": ("attribute", {}),
    "token": ("token", {}),
    "deepspeed": ("token", {"unit": "mlp", "backend": "deepspeed"}),
}
"""Routers and options of experts."""


class Audit(TorchDispatchMode):
    """The operators that compute, with the dtypes and shapes of their floating-point operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[torch.dtype], set[int]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
        floats = [x for x in tensors if x.is_floating_point()]
        sizes = {size for x in floats for size in x.shape}
        self.seen.append((func._schema.name.split("::")[1], {x.dtype for x in floats}, sizes))
        return out


def reads_attributes(name: str, sizes: set[int]) -> bool:
    """Is this a product of routers' bits? It is one of several decisions at once, for a few groups; a linear may have as many rows."""
    return name == "bmm" and NUM_ATTRIBUTES in sizes and sizes - {NUM_ATTRIBUTES, WIDTH} <= set(range(1, 5))


def test_only_products_of_attributes_pass_for_such():
    assert NUM_ATTRIBUTES not in (WIDTH // HEADS, WIDTH, TEXT)
    assert reads_attributes("bmm", {2, 3, NUM_ATTRIBUTES, WIDTH})
    assert not reads_attributes("bmm", {8, 6, WIDTH // HEADS})  # four rows of two heads
    assert not reads_attributes("addmm", {8, WIDTH})  # eight rows of a linear


@pytest.mark.parametrize("branches", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("task", ["caption", "retrieval"])
def test_audit_of_a_bf16_pass(kind, task, branches, monkeypatch):
    """Forward and backward: every product is bf16 but those of routers and scores, on a CPU those of attention too; whatever sums
    exponentials or squares is fp32, and so are weights and gradients."""
    if branches == "gpu":
        take_branches_of_a_gpu(monkeypatch)
    router, experts = SPARSE[kind]
    experts = experts if kind == "none" else {**experts, "num_experts": EXPERTS}
    config = tiny(
        router, experts, space=SPACE, layer_scale=1e-3, drop_path=0.1, width=WIDTH, heads=HEADS, max_text=TEXT
    )
    objective = Objective(config, VOCABULARY_SIZE, Mesh(), load_kernels("torch"))
    initialise(objective, 0)
    with Audit() as audit:
        with computing("cpu", torch.bfloat16):
            losses = objective(BATCHES[task](), 1)
        losses.total.backward()
    products = [seen for seen in audit.seen if seen[0] in PRODUCTS]
    low = [(name, sizes) for name, dtypes, sizes in products if dtypes == {torch.bfloat16}]
    other = [seen for seen in products if seen[1] != {torch.bfloat16}]
    if kind in ("token", "deepspeed"):
        assert ("_grouped_mm" in {name for name, _ in low}) == (branches == "gpu")
    assert len(low) >= 3 * 4 * config.depth  # four linears a block, forward and two products backward
    of_attention = [seen for seen in other if seen[0] == "bmm" and WIDTH // HEADS in seen[2]]
    assert bool(of_attention) == (branches == "cpu")
    for name, dtypes, sizes in other:
        is_exact = sizes & {EXPERTS, SPACE} or reads_attributes(name, sizes) or (name, dtypes, sizes) in of_attention
        assert dtypes == {torch.float32} and is_exact, (name, dtypes, sizes)
    # Products of experts that a GPU makes at once have the experts in their shapes, too, but rows of copies and not of tokens.
    tokens = {size for _, _, sizes in other if EXPERTS in sizes for size in sizes} - {EXPERTS, WIDTH}
    decided_low = any((EXPERTS in sizes and tokens & sizes) or reads_attributes(name, sizes) for name, sizes in low)
    assert not decided_low, "a router has decided in bf16"
    assert any(reads_attributes(name, sizes) for name, _, sizes in other) == (kind == "attribute")
    assert any(EXPERTS in sizes for _, _, sizes in other) == (kind != "none")
    assert any(SPACE in sizes and VOCABULARY_SIZE not in sizes for _, _, sizes in other), "scores"
    assert all(dtypes == {torch.float32} for name, dtypes, _ in audit.seen if name in EXACT)
    fused = [dtypes for name, dtypes, _ in audit.seen if "flash_attention" in name]
    assert bool(fused) == (branches == "gpu") and all(dtypes <= {torch.bfloat16, torch.float32} for dtypes in fused)
    for name, parameter in objective.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is None or parameter.grad.dtype == torch.float32, name


def test_auto_is_bf16_on_a_gpu_that_has_it(monkeypatch):
    assert dtype_of("auto", "cpu") == torch.float32
    assert [dtype_of(name, "cpu") for name in ("fp32", "bf16", "fp16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert dtype_of("auto", "cuda:0") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert dtype_of("auto", "cuda:0") == torch.float32
    with pytest.raises(PreflightError, match=r"parallel\.precision=bf16: Tesla T4 has none; use fp16"):
        dtype_of("bf16", "cuda:0")


@pytest.mark.parametrize(("able", "is_told"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_auto_stays_with_fp32_on_a_processor_and_says_where_bf16_is(monkeypatch, able, is_told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, able: True, "cpu_name": "x"})
    assert dtype_of("auto", "cpu") == torch.float32 and could_be_bf16("auto", "cpu") == is_told
    assert not could_be_bf16("fp32", "cpu") and not could_be_bf16("bf16", "cpu") and not could_be_bf16("auto", "cuda:0")


def test_the_loss_scale_halves_at_once_and_doubles_after_many_good_updates():
    scale = LossScale.of(torch.float16)
    scale.update(applied=False)
    assert scale.value == FIRST_SCALE / 2
    for _ in range(GROWS_AFTER - 1):
        scale.update(applied=True)
    assert scale.value == FIRST_SCALE / 2
    scale.update(applied=True)
    assert scale.value == FIRST_SCALE
    plain = LossScale.of(torch.bfloat16)
    plain.update(applied=False)
    assert plain == dataclasses.replace(plain, value=1.0)


def test_an_exact_product_has_the_gradients_of_any():
    x_NI, weight_OI = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    assert torch.autograd.gradcheck(exact_linear, (x_NI, weight_OI))


@pytest.mark.parametrize("kind", SPARSE)
def test_what_is_computed_again_is_so_in_bf16_too(kind):
    """Outside of autocast, in the backward pass: the same bits."""
    router, experts = SPARSE[kind]
    found = []
    for way in ("none", "selective", "block"):
        config = tiny(router, experts, activation_checkpointing=way)
        objective = Objective(config, VOCABULARY_SIZE, Mesh(), load_kernels("torch"))
        initialise(objective, 0)
        with computing("cpu", torch.bfloat16):
            losses = objective(BATCHES["caption"](), 1)
        losses.total.backward()
        found.append([parameter.grad for parameter in objective.parameters() if parameter.grad is not None])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
