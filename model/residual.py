"""The residual stream, in passes over memory that a compiler can make one kernel each.

    x' = x + keep scale branch        y = norm(x'), as products take it

On a GPU these passes take as long as all products when every operator runs by itself (docs/performance.md). So a branch is added where
the next norm reads the sum, also across blocks.
Legend: T tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.kernels import Kernels


@dataclasses.dataclass(frozen=True)
class Stream:
    """x_TD, and what is to be added to it: a branch, times LayerScale, times what dropped paths leave of it (0 or 1 / share kept)."""

    x_TD: Tensor
    branch_TD: Tensor | None = None
    scale_D: Tensor | None = None
    keep_T1: Tensor | None = None

    def at(self, token_R: Tensor) -> Stream:
        """Of some tokens, from here on."""
        assert self.branch_TD is None, "a branch has not been added yet"
        return Stream(self.x_TD.index_select(0, token_R))

    def plus(self, branch_TD: Tensor, scale_D: Tensor | None, keep_T1: Tensor | None) -> Stream:
        assert self.branch_TD is None, "a branch has not been added yet"
        return Stream(self.x_TD, branch_TD, scale_D, keep_T1)


@dataclasses.dataclass(frozen=True)
class Residual:
    """The passes, as `Kernels.fused` makes them."""

    _normed: Callable[..., Tensor]
    _added: Callable[..., Tensor]
    _added_and_normed: Callable[..., tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, kernels: Kernels) -> Residual:
        return cls(kernels.fused(_normed), kernels.fused(_added), kernels.fused(_added_and_normed))

    def normed(self, stream: Stream, norm: nn.Module, dtype: torch.dtype) -> tuple[Stream, Tensor]:
        """-> (the stream with its branch added, y_TD)."""
        if stream.branch_TD is None:
            return stream, self._normed(norm, stream.x_TD, dtype)
        x_TD, y_TD = self._added_and_normed(norm, stream.x_TD, stream.branch_TD, stream.scale_D, stream.keep_T1, dtype)
        return Stream(x_TD), y_TD

    def again(self, x_TD: Tensor, norm: nn.Module, dtype: torch.dtype) -> Tensor:
        """y_TD of a stream that has its branch."""
        return self._normed(norm, x_TD, dtype)

    def settled(self, stream: Stream) -> Stream:
        """With its branch added."""
        if stream.branch_TD is None:
            return stream
        return Stream(self._added(stream.x_TD, stream.branch_TD, stream.scale_D, stream.keep_T1))


def _normed(norm: nn.Module, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
    y_TD: Tensor = norm(x_TD)
    return y_TD.to(dtype)


def _added(x_TD: Tensor, branch_TD: Tensor, scale_D: Tensor | None, keep_T1: Tensor | None) -> Tensor:
    if scale_D is None:
        return x_TD + branch_TD if keep_T1 is None else torch.addcmul(x_TD, branch_TD.to(x_TD.dtype), keep_T1)
    if keep_T1 is not None:
        branch_TD = branch_TD * keep_T1
    return torch.addcmul(x_TD, branch_TD.to(x_TD.dtype), scale_D)


def _added_and_normed(
    norm: nn.Module,
    x_TD: Tensor,
    branch_TD: Tensor,
    scale_D: Tensor | None,
    keep_T1: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    x_TD = _added(x_TD, branch_TD, scale_D, keep_T1)
    return x_TD, _normed(norm, x_TD, dtype)
