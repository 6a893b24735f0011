"""Switches for fused kernels: torch's own or NVIDIA apex's, where it is installed and asked for, and passes over memory that
torch.compile joins.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from parallel.launch import PreflightError

KernelName = Literal["torch", "apex"]
CompileName = Literal["auto", "passes", "none"]
AttentionName = Literal["padded", "packed"]
PackedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Queries, keys and values [T, H, d] of rows one after another; where each row begins, and the last one ends [B + 1, int32]; the longest
-> [T, H, d]."""
LAYER_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Constructors of the layers and the optimizer that exist in a fused variant.

    fused     a function of tensors [T, ...], and of settings -> the same, as one kernel where it is compiled
    packed_attention  for rows of several lengths without their pads; none: pads and a mask
    """

    layer_norm: Callable[[int], nn.Module]
    adam: Callable[..., torch.optim.Optimizer]
    fused: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    packed_attention: PackedAttention | None = None


def load_kernels(name: KernelName, compile: CompileName = "none", attention: AttentionName = "padded") -> Kernels:
    """compile: what torch.compile makes kernels of; attention: how rows of several lengths are computed (run/config.py). Raises
    ModuleNotFoundError or PreflightError with the remedy when apex, a compiler or a GPU is asked for and missing."""
    if compile == "passes":
        _check_compiler()
    joins = compile == "passes" or (compile == "auto" and name == "torch" and _has_triton())
    kernels = dataclasses.replace(_load(name), fused=compiled) if joins else _load(name)
    if attention == "padded":
        return kernels
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise PreflightError("attention=packed: needs a GPU with flash attention (A100 or newer): set attention=padded")
    return dataclasses.replace(kernels, packed_attention=flash_attention)


def flash_attention(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, starts_X: Tensor, longest: int) -> Tensor:
    """torch's, in bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    found: Tensor = varlen_attn(q_THd, k_THd, v_THd, starts_X, starts_X, longest, longest)  # type: ignore[assignment]
    return found


def compiled(function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """The function as torch.compile makes it: without a break, and once for every number of rows."""
    # Kinds of blocks, precisions, towers and evaluation multiply; the limit is there for what is made anew without end.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    made = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def call(*arguments: Any) -> Any:
        for value in arguments:
            if isinstance(value, Tensor) and value.dim() > 1:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return made(*arguments)

    return call


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if torch.cuda.is_available():
        if not _has_triton():
            raise PreflightError("compile=passes: Triton is not installed: pip install triton, or set compile=none")
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise PreflightError("compile=passes: no C++ compiler: install g++, or set compile=none") from error


def _has_triton() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


def _load(name: KernelName) -> Kernels:
    if name == "torch":
        return Kernels(lambda width: nn.LayerNorm(width, eps=LAYER_NORM_EPS), _torch_adam)
    try:
        from apex.normalization import FusedLayerNorm
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise ModuleNotFoundError(
            "kernels=apex, but NVIDIA apex is not installed: build it from its repository (the package of that name on "
            "PyPI is another project), use the Docker image built with WITH_APEX=1, or set kernels=torch"
        ) from error
    return Kernels(
        lambda width: FusedLayerNorm(width, eps=LAYER_NORM_EPS),
        lambda parameters, **options: FusedAdam(parameters, adam_w_mode=True, **options),
    )


def _torch_adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True, **options)
