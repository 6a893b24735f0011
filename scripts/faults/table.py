"""Every kind of fault by its name, and what a machine must have for it."""

from __future__ import annotations

import os
import shutil
import signal

from scripts.faults import machine
from scripts.faults.kinds import (
    JUMP_S,
    MEMORY,
    Kind,
    address_space,
    clock,
    killed_and_restarted,
    out_of_memory,
    signalled,
)

KINDS: dict[str, Kind] = {
    "kill one rank": signalled(signal.SIGKILL, "one", {1}),
    "kill all ranks": signalled(signal.SIGKILL, "all", {1}),
    "kill one rank, supervisor restarts": killed_and_restarted,
    "kill the supervisor": signalled(signal.SIGKILL, "supervisor", {-9}, saves=True),
    "kill a data worker": signalled(signal.SIGKILL, "worker", {0, 1}),  # it may have made its last batch
    "terminate one rank": signalled(signal.SIGTERM, "one", {85}, saves=True),
    "terminate all ranks": signalled(signal.SIGTERM, "all", {1, 85}, saves=True),
    "terminate the supervisor": signalled(signal.SIGTERM, "supervisor", {85}, saves=True),
    "stop one rank": signalled(signal.SIGSTOP, "one", {1}),
    "full disk": machine.full_disk,
    "frozen disk": machine.stalled((machine.FROZEN_S,)),
    "slow disk": machine.stalled((1.0,) * 6),
    "store answers 503": machine.store("503", 3.0, {0, 1}),  # 1: a description is asked for six times
    "store dies": machine.store("dead", 0.0, {1}),
    "store is silent": machine.store("silent", 3.0, {0}),
    "cut cable": machine.network("cut", {1}),
    "cable drops packets": machine.network("drop", {0}),
    "clock forward": clock(JUMP_S),
    "clock back": clock(-JUMP_S),
    "address space ends": address_space,
    "out of memory": out_of_memory,
}


def missing(kind: str) -> str:
    """What this machine lacks for the kind, as a reason to leave it out; empty: nothing."""
    programs = {
        "full disk": ("mount",),
        "frozen disk": ("mount", "mkfs.ext4", "fsfreeze"),
        "slow disk": ("mount", "mkfs.ext4", "fsfreeze"),
        "cut cable": ("ip",),
        "cable drops packets": ("ip", "nft"),
        "out of memory": (),
        "clock forward": ("cc",),
        "clock back": ("cc",),
    }
    if kind in programs and not kind.startswith("clock") and os.geteuid():
        return "needs root"
    lacking = [program for program in programs.get(kind, ()) if shutil.which(program) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    if kind == "out of memory" and not (MEMORY / "cgroup.procs").exists():
        return "needs memory control groups (version 1)"
    return ""
