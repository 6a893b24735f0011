"""The global gradient norm, by family of parameters, and clipping by it.

Every element of every logical gradient counts once, over whatever axes it is cut or copied; one sum over the world gives
all ranks the same number.
"""

from __future__ import annotations

import dataclasses
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
    """Collective over all ranks. Sums of squares are fp64: fp32 would lose the small ones of a large model."""
    squares = torch.zeros(len(FAMILIES), dtype=torch.float64, device=device)
    for name, piece in named:
        if piece.owned and piece.gradient is not None:
            norm = torch.linalg.vector_norm(piece.gradient, dtype=torch.float32).to(device)
            squares[FAMILIES.index(family_of(name))] += norm.double() ** 2
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(squares)
    norms = (squares.sqrt() / loss_scale).tolist()
    return GradientNorms((squares.sum().sqrt() / loss_scale).item(), *norms)


def clip_gradients(pieces: Iterable[Piece], norm: float, limit: float, loss_scale: float = 1.0) -> None:
    """Scale all gradients in place so that their global norm is at most `limit`, and take the loss scale out; 0 clips nothing.
    norm: without the loss scale."""
    factor = (limit / norm if limit and norm > limit else 1.0) / loss_scale
    if factor != 1.0:
        for piece in pieces:
            if piece.gradient is not None:
                piece.gradient.mul_(factor)
