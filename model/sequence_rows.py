"""Where the residual stream of a pass lies on tensor ranks: whole on each, or its rows cut over them (parallel/sequence_parallel.py).

    WholeRows  [T, D] on every rank. `axis`: the ranks whose sums layers leave to the block, of size 1 where layers
               communicate themselves
    CutRows    the tokens in their order, [P, D] per rank: norms, residual sums, LayerScale and dropped branches work on the own rows
Both are used alike: take, then for each branch enter and leave, and at the end give.
Legend: T tokens of a pass, D width, P tokens of a rank.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from parallel.collectives import Axis, copy_to_axis, reduce_from_axis
from parallel.sequence_parallel import cut_rows, gather_rows, join_rows, sum_rows, used_alike

ALONE = Axis("sequence")


@dataclasses.dataclass(frozen=True)
class WholeRows:
    axis: Axis = ALONE

    def enter(self, x_TD: Tensor) -> Tensor:
        """All tokens, for linears of which each rank has a part."""
        return copy_to_axis(x_TD, self.axis)

    def deciding(self, x_TD: Tensor) -> Tensor:
        """Entered tokens, for a use that is the same on all ranks."""
        return used_alike(x_TD, self.axis)

    def leave(self, y_TD: Tensor) -> Tensor:
        """The sum of what the ranks' parts of a pair of linears give."""
        return reduce_from_axis(y_TD, self.axis)

    def each(self, values_T1: Tensor) -> Tensor:
        """A number for each token, for the tokens that this rank has."""
        return values_T1


@dataclasses.dataclass(frozen=True)
class CutRows:
    axis: Axis
    tokens: int

    def take(self, x_TD: Tensor) -> Tensor:
        return cut_rows(x_TD, self.axis)

    def enter(self, x_PD: Tensor) -> Tensor:
        return gather_rows(x_PD, self.tokens, self.axis)

    def deciding(self, x_TD: Tensor) -> Tensor:
        return used_alike(x_TD, self.axis)

    def leave(self, y_TD: Tensor) -> Tensor:
        return sum_rows(y_TD, self.axis)

    def give(self, x_PD: Tensor) -> Tensor:
        return join_rows(x_PD, self.tokens, self.axis)

    def each(self, values_T1: Tensor) -> Tensor:
        return cut_rows(values_T1, self.axis)


Rows = WholeRows | CutRows
WHOLE = WholeRows()
