"""Which process is meant, on which machine, and whether it lives."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import psutil


def machine() -> str:
    """The same word for processes that see each other's process numbers, also in containers that share a host's name; empty where
    that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def myself() -> dict[str, Any]:
    """What tells this process from all others, later ones with its number included."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "began": began(os.getpid()),
    }


def is_same(found: psutil.Process, told: dict[str, Any]) -> bool:
    """Is it the process that `myself` told of? Earlier versions knew its start by a clock that can be set, and nothing else."""
    if "began" in told:
        return began(found.pid) == told["began"]
    return found.create_time() == told.get("created")


def began(pid: int) -> float | None:
    """When a process began, by a clock that nobody sets: in ticks since the machine did, where /proc tells it. None: there is no such
    process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return float(fields[19])
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def lives(found: psutil.Process | None) -> bool:
    try:
        return found is not None and found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
