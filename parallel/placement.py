"""Where each parameter lives: which slice of the logical tensor this rank holds, and along which axes it is cut.

One description serves the cut at initialisation, the gradient group, checkpoints and replica checks.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

TENSOR_AXIS = "tensor"
EXPERT_AXIS = "expert"


@dataclasses.dataclass(frozen=True)
class Cut:
    """Dimension `dim` of the logical tensor is cut into `count` equal parts along mesh axis `axis`; this is part `index`."""

    dim: int
    axis: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """The logical shape of a parameter and the cuts that lead to this rank's part."""

    shape: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()

    def __post_init__(self) -> None:
        for cut in self.cuts:
            if self.shape[cut.dim] % cut.count:
                raise ValueError(
                    f"dimension {cut.dim} of {self.shape} ({self.shape[cut.dim]}) does not divide by {cut.count} {cut.axis} ranks"
                )

    @property
    def local_shape(self) -> tuple[int, ...]:
        shape = list(self.shape)
        for cut in self.cuts:
            shape[cut.dim] //= cut.count
        return tuple(shape)

    def take(self, logical: Tensor) -> Tensor:
        """This rank's part of the logical tensor (a view)."""
        part = logical
        for cut in self.cuts:
            size = self.shape[cut.dim] // cut.count
            part = part.narrow(cut.dim, cut.index * size, size)
        return part

    def is_cut_along(self, axis: str) -> bool:
        return any(cut.axis == axis and cut.count > 1 for cut in self.cuts)


def place(parameter: nn.Parameter, placement: Placement) -> nn.Parameter:
    """Note the placement on the parameter, where `placement_of` finds it."""
    assert tuple(parameter.shape) == placement.local_shape, (parameter.shape, placement)
    parameter.placement = placement  # type: ignore[attr-defined]
    # megatron-core and DeepSpeed count a parameter without this attribute on the first tensor rank alone.
    parameter.tensor_model_parallel = placement.is_cut_along(TENSOR_AXIS)  # type: ignore[attr-defined]
    return parameter


def mark_partial(parameter: nn.Parameter) -> None:
    """The parameter acts on a part of the rows on each tensor rank: its gradients are parts of a sum, which the engine makes."""
    parameter.has_partial_gradient = True  # type: ignore[attr-defined]


def has_partial_gradient(parameter: nn.Parameter) -> bool:
    return getattr(parameter, "has_partial_gradient", False)


def placement_of(parameter: nn.Parameter) -> Placement:
    """The placement of a parameter; one without a note is whole on every rank."""
    noted: Placement | None = getattr(parameter, "placement", None)
    return Placement(tuple(parameter.shape)) if noted is None else noted
