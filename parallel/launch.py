"""What the launcher says about this rank: the deepspeed launcher, torchrun, srun, or none."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator


class PreflightError(Exception):
    """This machine cannot start as it is; the message has the remedy."""


def launched_world_size() -> int:
    """How many ranks the launcher started (1 where there is no launcher); read before any group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def launched_ranks_here() -> int:
    """How many ranks the launcher started on this machine."""
    local = next((os.environ[name] for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if os.environ.get(name)), "1")
    return max(1, int(local))


def is_first_on_machine() -> bool:
    """Errors that may differ from machine to machine, such as missing data, are told once on each."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def device_number(count: int) -> int:
    """This rank's GPU among the `count` that it sees. Where there is one, a launcher such as `srun --gpus-per-task=1` shows each
    rank its own alone, always under the number 0.

    Raises PreflightError on all ranks of a machine with fewer GPUs than ranks.
    """
    if count == 1:
        return 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = max(launched_ranks_here(), local + 1)
    if here > count:
        raise PreflightError(
            f"{here} ranks were started on a machine where each sees {count} GPUs: start {count} or fewer there, or show each "
            "its own alone (srun --gpus-per-task=1)"
        )
    return local


@contextlib.contextmanager
def local_rank_of(device: str) -> Iterator[None]:
    """DeepSpeed takes LOCAL_RANK for the number of its GPU."""
    _, _, number = device.partition(":")
    with replaced_variable("LOCAL_RANK", number or os.environ.get("LOCAL_RANK")):
        yield


def accept_slurm() -> None:
    """Where srun itself started the ranks, give its variables the names that torch reads.

    A batch script has SLURM_PROCID too; the step's number tells a task of srun from it. The port follows from job and step, so
    that jobs which share a machine do not meet.
    """
    slurm = os.environ
    if "RANK" in slurm or not {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"} <= slurm.keys():
        return
    slurm["RANK"] = slurm["SLURM_PROCID"]
    slurm["WORLD_SIZE"] = slurm.get("SLURM_STEP_NUM_TASKS", slurm["SLURM_NTASKS"])
    slurm["LOCAL_RANK"] = slurm.get("SLURM_LOCALID", "0")
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE", "1")  # "4(x2)", or "4,3" where they are uneven
    slurm["LOCAL_WORLD_SIZE"] = re.split(r"\D", tasks)[0] or "1"
    nodes = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_NODELIST") or slurm.get("SLURM_JOB_NODELIST")
    # Rank 0 is on the first machine of the list. The one that srun was called on may be a login machine.
    address = first_node(nodes) if nodes else slurm.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    slurm.setdefault("MASTER_ADDR", address)
    key = 31 * int(slurm.get("SLURM_JOB_ID", "0")) + int(slurm["SLURM_STEP_ID"])
    slurm.setdefault("MASTER_PORT", str(15_000 + key % 15_000))


def first_node(nodes: str) -> str:
    """gpu[07-09,12],login1 -> gpu07."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodes)[0])


@contextlib.contextmanager
def replaced_variable(variable: str, value: str | None) -> Iterator[None]:
    """Another value in the environment for a while; None takes the variable out."""
    before = os.environ.pop(variable, None)
    if value is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
