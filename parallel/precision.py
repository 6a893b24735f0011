"""In which numbers a run computes: `parallel.precision`.

Weights, their gradients, moments and the residual stream are fp32 in every precision; so are routers, logit scales, LayerScale,
norms, softmax and losses. Products of matrices and attention take bf16 or fp16 copies, by torch's autocast. The weight itself is the
master, so an update smaller than bf16 resolves is kept, and gradients of several micro-batches add up in fp32. DeepSpeed's own bf16
and fp16 cast whole modules, routers and scales too, and add up in 16 bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Literal

import torch
from torch import Tensor

from parallel.launch import PreflightError

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE, MAX_SCALE = 2.0**16, 2.0**24
GROWS_AFTER = 1000
"""Updates in a row, after which fp16's loss scale doubles."""


def dtype_of(name: PrecisionName, device: str) -> torch.dtype:
    """Of products on this device. auto: bf16 on a GPU that has it, fp32 elsewhere. Raises PreflightError for a GPU without bf16."""
    if name in ("fp32", "fp16"):
        return _DTYPES[name]
    on_gpu = torch.device(device).type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return torch.bfloat16 if on_gpu and has_bf16 else torch.float32
    if name == "bf16" and not has_bf16:
        raise PreflightError(
            f"parallel.precision=bf16: {torch.cuda.get_device_name(device)} has none; use fp16, or fp32"
        )
    return torch.bfloat16


def could_be_bf16(name: PrecisionName, device: str) -> bool:
    """Whether auto takes fp32 on a processor that multiplies in bf16. It stays with fp32 there, so that a run does not depend on the
    processor that it starts on."""
    if name != "auto" or torch.device(device).type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def computing(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Inside, products are computed in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype)


def is_lowering(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def product_dtype(x: Tensor) -> torch.dtype:
    """As autocast hands x to a product."""
    return torch.get_autocast_dtype(x.device.type) if is_lowering(x.device) else x.dtype


def lowered(x: Tensor) -> Tensor:
    """For products of our own, which autocast does not know."""
    return x.to(product_dtype(x))


def exactly(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, fp32 is fp32: no autocast."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def allow_tf32() -> None:
    """What is left in fp32 beside bf16 may multiply in TF32 on a GPU, but for routers."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def exact_linear(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """[N, O], or [D, N, O] of D such products, in fp32 proper, forward and backward: a decision must not hang on
    rounding. Outside of autocast."""
    product: Tensor = _ExactLinear.apply(x_NI, weight_OI)
    return product


class _ExactLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, weight_OI):
        wants_x, wants_weight = ctx.needs_input_grad
        # No more than is asked for: what is saved here `selective` would compute again.
        ctx.save_for_backward(x_NI if wants_weight else None, weight_OI if wants_x else None)
        with _ieee():
            return x_NI @ weight_OI.mT

    @staticmethod
    def backward(ctx, dy_NO):
        x_NI, weight_OI = ctx.saved_tensors
        with _ieee():
            dx_NI = None if weight_OI is None else dy_NO @ weight_OI
            return dx_NI, None if x_NI is None else dy_NO.mT @ x_NI


@contextlib.contextmanager
def _ieee():
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclasses.dataclass
class LossScale:
    """fp16's factor of the loss, so that small gradients do not vanish: halved where one overflows, doubled after many good updates.
    1 in other precisions."""

    value: float = 1.0
    is_dynamic: bool = False
    good: int = 0

    @classmethod
    def of(cls, dtype: torch.dtype) -> LossScale:
        return cls(FIRST_SCALE, True) if dtype == torch.float16 else cls()

    def update(self, applied: bool) -> None:
        if not self.is_dynamic:
            return
        self.good = self.good + 1 if applied else 0
        if not applied:
            self.value = max(1.0, self.value / 2)
        elif self.good % GROWS_AFTER == 0:
            self.value = min(MAX_SCALE, 2 * self.value)
