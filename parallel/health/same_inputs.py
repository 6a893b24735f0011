"""Do all ranks run the same thing? Asked once at the start, when the ranks have met.

What must be the same (configuration, data) is an error where it differs. The environment may differ for a reason and is told:
launchers hand on only some variables to other machines, and an image may be older there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

VARIABLES = ("NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH_", "CUDA_LAUNCH", "DS_", "PYTHONHASHSEED", "WANDB_")
"""Beginnings of the names of variables that change how a run computes or reports."""
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
PACKAGES = ("torch", "deepspeed", "megatron-core", "webdataset", "numpy", "av", "pillow")


class DisagreementError(Exception):
    """Ranks were started with different configurations or see different data."""


def digest(content: bytes) -> str:
    """A few characters that tell contents apart."""
    return hashlib.sha256(content).hexdigest()[:12]


def environment() -> dict[str, str]:
    """Versions and variables of this process; of a secret only whether it is set."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    found["python"] = platform.python_version()
    for name, value in os.environ.items():
        if name.startswith(VARIABLES):
            found[name] = "set" if any(word in name for word in SECRET) else value
    return found


def check_same_inputs(must_agree: Mapping[str, str]) -> list[str]:
    """Collective. Lines about differences of the environment, the same on all ranks. Raises DisagreementError on all of them if a value
    of `must_agree` differs."""
    mine = (socket.gethostname(), dict(must_agree), environment())
    everyone: list[Any] = [mine] * dist.get_world_size()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, mine)
    hosts = [host for host, _, _ in everyone]
    for name in must_agree:
        holders = _holders([facts.get(name) for _, facts, _ in everyone], hosts)
        if len(holders) > 1:
            raise DisagreementError(
                f"ranks were given different {name}: {'; '.join(holders)}. Start all machines with the same files and arguments"
            )
    values = [found for _, _, found in everyone]
    lines = []
    for name in sorted(set().union(*values)):
        holders = _holders([found.get(name, "not set") for found in values], hosts)
        if len(holders) > 1:
            lines.append(f"environment differs: {name} is {'; '.join(holders)}")
    return lines


def _holders(values: list[Any], hosts: list[str]) -> list[str]:
    """One text a distinct value: the value, its ranks and machines."""
    ranks: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return [
        f"{value} on rank{'s' * (len(mine) > 1)} {', '.join(map(str, mine[:4]))}{' ...' * (len(mine) > 4)} "
        f"({', '.join(sorted({hosts[rank] for rank in mine})[:4])})"
        for value, mine in ranks.items()
    ]
