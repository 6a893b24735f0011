"""Where the residual stream of a pass lies on tensor ranks: whole on each, or its rows cut over them (parallel/sequence_parallel.py).

    WholeRows  [B, L, D] on every rank. `axis`: the ranks whose sums layers leave to the block, of size 1 where layers
               communicate themselves
    CutRows    each sequence's tokens in their order in memory, [P, D] per rank: norms, residual sums, LayerScale and dropped
               branches work on the own rows
Both are used alike: take, then for each branch enter and leave, and at the end give.
Legend: B rows of a batch, L positions, D width, P tokens of a rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from model.layout import in_storage_order
from parallel.collectives import Axis, copy_to_axis, reduce_from_axis
from parallel.sequence_parallel import cut_rows, gather_rows, join_rows, sum_rows, used_alike

Norm = Callable[[Tensor], Tensor]
ALONE = Axis("sequence")


@dataclasses.dataclass(frozen=True)
class WholeRows:
    axis: Axis = ALONE

    def enter(self, norm: Norm, x_BLD: Tensor, index: int) -> Tensor:
        """All tokens of sequence `index`, normalised, for linears of which each rank has a part."""
        return copy_to_axis(in_storage_order(norm, x_BLD), self.axis)

    def deciding(self, x_BLD: Tensor) -> Tensor:
        """Entered tokens, for a use that is the same on all ranks."""
        return used_alike(x_BLD, self.axis)

    def leave(self, y_BLD: Tensor) -> Tensor:
        """The sum of what the ranks' parts of a pair of linears give."""
        return reduce_from_axis(y_BLD, self.axis)

    def each(self, values_B11: Tensor, index: int) -> Tensor:
        """A number for each row of the batch, in a shape that the residual stream can be multiplied by."""
        return values_B11


@dataclasses.dataclass(frozen=True)
class CutRows:
    """shapes: (B, L) of each sequence. position_major: tokens lie position by position in memory."""

    axis: Axis
    shapes: tuple[tuple[int, int], ...]
    position_major: bool

    def take(self, x_BLD: Tensor) -> Tensor:
        return cut_rows(self._stored(x_BLD), self.axis)

    def enter(self, norm: Norm, x_PD: Tensor, index: int) -> Tensor:
        batch, length = self.shapes[index]
        return self._restored(gather_rows(norm(x_PD), batch * length, self.axis), index)

    def deciding(self, x_BLD: Tensor) -> Tensor:
        return used_alike(x_BLD, self.axis)

    def leave(self, y_BLD: Tensor) -> Tensor:
        return sum_rows(self._stored(y_BLD), self.axis)

    def give(self, x_PD: Tensor, index: int) -> Tensor:
        batch, length = self.shapes[index]
        return self._restored(join_rows(x_PD, batch * length, self.axis), index)

    def each(self, values_B11: Tensor, index: int) -> Tensor:
        batch, length = self.shapes[index]
        return cut_rows(self._stored(values_B11.expand(batch, length, 1)), self.axis)

    def _stored(self, x_BLD: Tensor) -> Tensor:
        ordered = x_BLD.transpose(0, 1) if self.position_major else x_BLD
        return ordered.reshape(-1, x_BLD.shape[-1])

    def _restored(self, x_ND: Tensor, index: int) -> Tensor:
        batch, length = self.shapes[index]
        if self.position_major:
            return x_ND.view(length, batch, -1).transpose(0, 1)
        return x_ND.view(batch, length, -1)


Rows = WholeRows | CutRows
WHOLE = WholeRows()
