"""What a decision tells besides what it does. Nothing is stored in a module, so recomputation counts nothing twice."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from model.moe.use import ExpertUse


@dataclasses.dataclass(frozen=True)
class RoutingReport:
    """use: of the experts, without gradient. losses: auxiliary losses by name, unweighted and detached; loss: their weighted sum, a scalar
    with gradient."""

    use: ExpertUse
    losses: dict[str, Tensor]
    loss: Tensor
