"""Making the groups of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clusters.ranks import free_port
from parallel.config import OptimizerConfig
from parallel.engine import Engine
from parallel.kernels import load_kernels
from parallel.launch import PreflightError, device_number, is_first_on_machine
from parallel.mesh import Mesh
from tests.helpers.distributed import run_ranks
from tests.helpers.places import ROOT
from tests.helpers.runs import environment


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


def test_a_first_rank_that_nobody_meets_may_do_when_started_again():
    """It keeps the place where ranks meet, and the second one does not come. What exit code that is: test_launch.py."""
    place = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    code = "from parallel.mesh import create_mesh; create_mesh(timeout_s=1.0)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment() | place, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"parallel.launch.MeetingError: rank 0 did not meet the others at 127.0.0.1:{place['MASTER_PORT']}: "
    )


def shared_memory_left(rank: int) -> list[str]:
    from parallel.mesh import create_mesh

    os.environ["LOCAL_SIZE"] = "2"  # as the deepspeed launcher sets it
    create_mesh()
    assert os.environ["LOCAL_SIZE"] == "2"
    return [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{os.environ['MASTER_PORT']}_*")]


def test_no_shared_memory_is_left_behind():
    assert run_ranks(2, shared_memory_left) == [[], []]


@pytest.mark.parametrize(
    ("count", "local_rank", "ranks_here", "expected"),
    [(8, 3, 8, 3), (4, 3, 4, 3), (1, 3, 4, 0), (1, 0, 1, 0), (2, 1, 1, 1)],
)
def test_the_gpu_of_a_rank(count, local_rank, ranks_here, expected, monkeypatch):
    """Third case: srun shows each of the four ranks its own GPU alone."""
    started(monkeypatch, local_rank, ranks_here)
    assert device_number(count) == expected


@pytest.mark.parametrize("local_rank", [0, 1, 3])
def test_more_ranks_than_gpus_is_an_error_of_all(local_rank, monkeypatch):
    """Also of the first on the machine, which tells it."""
    started(monkeypatch, local_rank, 4)
    with pytest.raises(
        PreflightError, match="4 ranks were started on a machine where each sees 2 GPUs: start 2 or fewer"
    ):
        device_number(2)


def started(monkeypatch, local_rank: int, ranks_here: int) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))


@pytest.mark.parametrize(("device", "inside"), [("cuda:0", "0"), ("cpu", "3")])
def test_deepspeed_takes_the_gpu_of_the_mesh(device, inside, monkeypatch):
    """And the rank's number on its machine stays what it is."""
    import deepspeed

    seen = []

    def initialize(**_):
        seen.append(os.environ["LOCAL_RANK"])
        raise InterruptedError

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(InterruptedError):
        Engine(torch.nn.Linear(2, 2), Mesh(device=device), OptimizerConfig(), {}, load_kernels("torch"))
    assert seen == [inside] and os.environ["LOCAL_RANK"] == "3" and not is_first_on_machine()


def timeouts_s(rank: int) -> set[float]:
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
