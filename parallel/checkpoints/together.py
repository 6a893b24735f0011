"""Collectives over all ranks by which a failure of one becomes the same CheckpointError on all. Without process groups, or
with one rank, they only call the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from parallel.checkpoints.fragments import CheckpointError

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def on_first_rank(work: Callable[[], T]) -> T:
    """Collective. What rank 0's call returns, on all ranks; the others do not call it."""
    rank, world = rank_and_world()
    if world == 1:
        return work()
    outcome = [_attempt(work) if rank == 0 else None]
    dist.broadcast_object_list(outcome, src=0)
    return _results(outcome)[0]


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Collective. What the call returns on each rank. Results must be small."""
    _, world = rank_and_world()
    if world == 1:
        return [work()]
    outcomes: list[Any] = [None] * world
    dist.all_gather_object(outcomes, _attempt(work))
    return _results(outcomes)


def to_first_rank(part: T) -> list[T]:
    """Collective. Every rank's part on rank 0, nothing on the others."""
    rank, world = rank_and_world()
    if world == 1:
        return [part]
    parts: list[Any] = [None] * world
    dist.gather_object(part, parts if rank == 0 else None, dst=0)
    return parts if rank == 0 else []


def _attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """(result, None) or (None, error). Errors of our own code pass through: they end the run as any other does."""
    try:
        return work(), None
    except CheckpointError as error:
        return None, str(error)


def _results(outcomes: list[Any]) -> list[Any]:
    errors = [error for _, error in outcomes if error is not None]
    if errors:
        raise CheckpointError("; ".join(dict.fromkeys(errors)))
    return [result for result, _ in outcomes]
