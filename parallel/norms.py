"""The global gradient norm, by family of parameters, and clipping by it.

Every element of every logical gradient counts once, over whatever axes it is cut or copied; one sum over the world gives
all ranks the same number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from parallel.optimizer_state import Piece

FAMILIES = ("dense", "experts", "routers")


@dataclasses.dataclass(frozen=True)
class GradientNorms:
    """L2 norms before clipping."""

    total: float
    dense: float
    experts: float
    routers: float


def family_of(name: str) -> str:
    """dense, experts or routers, from a parameter's global name."""
    if ".router." in name:
        return "routers"
    return "experts" if ".bank." in name or ".experts." in name else "dense"


def gradient_norms(named: Iterable[tuple[str, Piece]], device: str, loss_scale: float = 1.0) -> GradientNorms:
    """Collective over all ranks. Sums of squares are fp64: fp32 would lose the small ones of a large model. The host waits once."""
    owned = [(family_of(name), p.gradient) for name, p in named if p.owned and p.gradient is not None]
    squares = torch.zeros(len(FAMILIES), dtype=torch.float64, device=device)
    for index, family in enumerate(FAMILIES):
        gradients = [gradient for its, gradient in owned if its == family]
        if gradients:
            norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
            squares[index] = torch.stack(norms).to(device).double().square().sum()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    found = [math.sqrt(square) / loss_scale if square >= 0 else math.nan for square in squares.tolist()]
    return GradientNorms(math.hypot(*found), *found)


def clip_gradients(pieces: Iterable[Piece], norm: float, limit: float, loss_scale: float = 1.0) -> None:
    """Scale all gradients in place so that their global norm is at most `limit`, and take the loss scale out; 0 clips nothing.
    norm: without the loss scale."""
    factor = (limit / norm if limit and norm > limit else 1.0) / loss_scale
    gradients = [piece.gradient for piece in pieces if piece.gradient is not None]
    if factor != 1.0 and gradients:
        torch._foreach_mul_(gradients, factor)
