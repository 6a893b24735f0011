"""Making the groups of ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.helpers.distributed import run_ranks


def finishes_early(rank: int) -> str:
    """All there is to do is the mesh, and rank 1 is slow to make the last group, which is its own."""
    import torch.distributed as dist

    from parallel.mesh import create_mesh

    new_group = dist.new_group

    def slow(ranks=None, *args, **kwargs):
        time.sleep(0.05 if rank == 1 and ranks == [1] else 0)
        return new_group(ranks, *args, **kwargs)

    dist.new_group = slow
    return create_mesh(tensor=2).device


def test_no_rank_leaves_before_all_have_their_groups():
    """Rank 0 keeps the store that the others meet at."""
    assert run_ranks(2, finishes_early) == ["cpu", "cpu"]


def shared_memory_left(rank: int) -> list[str]:
    from parallel.mesh import create_mesh

    os.environ["LOCAL_SIZE"] = "2"  # as the deepspeed launcher sets it
    create_mesh()
    assert os.environ["LOCAL_SIZE"] == "2"
    return [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{os.environ['MASTER_PORT']}_*")]


def test_no_shared_memory_is_left_behind():
    assert run_ranks(2, shared_memory_left) == [[], []]


def timeouts_s(rank: int) -> set[float]:
    import torch

    from parallel.mesh import create_mesh

    mesh = create_mesh(expert=2, timeout_s=77.0)
    groups = [
        torch.distributed.group.WORLD,
        mesh.tensor.group,
        mesh.data.group,
        mesh.expert.group,
        mesh.expert_data.group,
    ]
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    return {backend.options._timeout.total_seconds() for backend in backends}


def test_every_group_waits_as_long_as_was_asked_for():
    assert run_ranks(2, timeouts_s) == [{77.0}, {77.0}]
