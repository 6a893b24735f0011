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
LAYER_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Constructors of the layers and the optimizer that exist in a fused variant.

    fused     a function of tensors [T, ...] -> the same, as one kernel where it is compiled
    """

    layer_norm: Callable[[int], nn.Module]
    adam: Callable[..., torch.optim.Optimizer]
    fused: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function


def load_kernels(name: KernelName, compile: CompileName = "none") -> Kernels:
    """compile: what torch.compile makes kernels of (run/config.py). Raises ModuleNotFoundError or PreflightError with the remedy when
    apex or a compiler is asked for and missing."""
    if compile == "passes":
        _check_compiler()
    joins = compile == "passes" or (compile == "auto" and name == "torch" and _has_triton())
    return dataclasses.replace(_load(name), fused=compiled) if joins else _load(name)


def compiled(function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """The function as torch.compile makes it: without a break, and once for every number of rows."""
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
