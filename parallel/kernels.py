"""One switch for fused kernels: torch's own, or NVIDIA apex's where it is installed and asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

KernelName = Literal["torch", "apex"]
LAYER_NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Constructors of the layers and the optimizer that exist in a fused variant."""

    layer_norm: Callable[[int], nn.Module]
    adam: Callable[..., torch.optim.Optimizer]


def load_kernels(name: KernelName) -> Kernels:
    """Raises ModuleNotFoundError with the remedy when apex is asked for and missing."""
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
