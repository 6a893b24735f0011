"""Low-rank updates of linears (LoRA, arXiv 2106.09685): weight + alpha / rank * up down.

The sum is made before the weight is used, not beside it: so one rule serves dense linears, banks whose experts are merged or sent
tokens, and any cut over ranks, and an update can be merged into its weight for good. It costs a product of `rank` rows a pass and
the whole weight's gradient while a backward pass runs; optimizer and checkpoint hold the two small matrices alone.
Legend: E experts, O out, I in, r rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import LoraConfig
from parallel.collectives import Axis, copy_to_axis
from parallel.placement import Cut, Placement, place


class LowRankUpdate(nn.Module):
    """Of a weight [..., O, I] that is placed so: down [..., r, I] and up [..., O, r], which starts at zero. Both are cut as the
    weight is, where they have the dimension that is cut."""

    def __init__(self, config: LoraConfig, weight: Placement, tensor: Axis) -> None:
        super().__init__()
        *experts, outputs, inputs = weight.shape
        self.factor = config.alpha / config.rank
        self.tensor = tensor
        last = len(weight.shape) - 1
        self.down = _empty((*experts, config.rank, inputs), tuple(cut for cut in weight.cuts if cut.dim != last - 1))
        self.up = _empty((*experts, outputs, config.rank), tuple(cut for cut in weight.cuts if cut.dim != last))
        cut_dims = {cut.dim for cut in weight.cuts if cut.count > 1}
        self._down_is_shared, self._up_is_shared = last - 1 in cut_dims, last in cut_dims

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, of the same shape."""
        # What is whole on every tensor rank acts on a part of the weight on each, so its gradients are parts of a sum.
        down = copy_to_axis(self.down, self.tensor) if self._down_is_shared else self.down
        up = copy_to_axis(self.up, self.tensor) if self._up_is_shared else self.up
        return weight + self.factor * torch.matmul(up, down)


def _empty(shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> nn.Parameter:
    placement = Placement(shape, cuts)
    return place(nn.Parameter(torch.empty(placement.local_shape)), placement)


def draw_down(logical: Tensor, generator: torch.Generator) -> None:
    """Fresh values of `down` [..., r, I]: uniform within 1 / sqrt(I)."""
    bound = 1.0 / math.sqrt(logical.shape[-1])
    nn.init.uniform_(logical, -bound, bound, generator=generator)
