"""What a run was started with: the command, the code, the machine and the libraries. For the record, and for reports."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from data.transport import shown
from parallel.config import ParallelConfig
from parallel.launch import launched_world_size

LIBRARIES = ("torch", "deepspeed", "megatron-core", "webdataset", "numpy", "wandb")
ROOT = Path(__file__).resolve().parents[1]


def environment(parallel: ParallelConfig) -> dict[str, Any]:
    """Of the first rank. Nothing in it is secret: URLs are without user, password and query."""
    return {
        "command": shlex.join(map(shown_word, [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])),
        "git": git_state(ROOT),
        "versions": {"python": platform.python_version(), **versions(LIBRARIES)},
        "hardware": hardware(),
        "ranks": {
            "data": launched_world_size() // parallel.tensor,
            "tensor": parallel.tensor,
            "expert": parallel.expert,
        },
    }


def shown_word(word: str) -> str:
    """A word of a command without what may be secret in it: users, passwords and queries of URLs, programs of pipes."""
    before, pipe, _ = word.partition("pipe:")
    return re.sub(r"\w+://[^\s,\]\"']+", lambda url: shown(url[0]), before) + (f"{pipe}..." if pipe else "")


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """commit, and whether files differ from it; None where there is no repository or no git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "devices": devices,
    }


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
