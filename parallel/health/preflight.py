"""What DeepSpeed would wait for without a word, or refuse in words of its own, looked for before it is set up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from parallel.launch import PreflightError

BUILT_AT_START = "deepspeed_shm_comm"
"""DeepSpeed's op for CPU ranks on one machine; built at the first start unless DeepSpeed was installed with it."""
LOCAL_FILE_SYSTEMS = {"apfs", "btrfs", "ext2", "ext3", "ext4", "overlay", "overlayfs", "tmpfs", "xfs", "zfs"}
BUILD_S = 900.0
"""On a file system shared by machines the builder may be elsewhere; no build takes longer."""


def check_build_lock() -> None:
    """Raises PreflightError if DeepSpeed would wait for a build that has been killed."""
    import torch

    if torch.cuda.is_available():
        return  # the op serves CPU ranks alone
    try:
        lock = build_folder(BUILT_AT_START) / "lock"
        stale = is_stale(lock)
    except OSError as error:
        if not _is_prebuilt(BUILT_AT_START):
            raise PreflightError(
                f"DeepSpeed must build {BUILT_AT_START}, and {error.filename} cannot be written: {error.strerror}; set HOME, or "
                "TORCH_EXTENSIONS_DIR, to a folder that can"
            ) from error
        return
    if stale and not _is_prebuilt(BUILT_AT_START):
        raise PreflightError(
            f"{lock} is left over from a build of DeepSpeed's {BUILT_AT_START} that was killed, and every start would wait for it: "
            f"remove it (rm {lock}) and start again"
        )


def build_folder(op: str) -> Path:
    """Where torch builds an extension."""
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(op, verbose=False))


def is_stale(lock: Path) -> bool:
    """Is there a lock that no process holds? A builder keeps its lock file open until it has removed it."""
    first = _identity(lock)
    if first is None or _is_open(lock):
        return False
    if not _is_local(lock) and time.time() - lock.stat().st_mtime < BUILD_S:
        return False
    time.sleep(1.0)  # a builder closes its lock just before it removes it
    return _identity(lock) == first and not _is_open(lock)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_open(path: Path) -> bool:
    """Has any process on this machine that we may ask opened the file?"""
    wanted = os.path.realpath(path)
    for process in psutil.process_iter():
        try:
            if any(file.path == wanted for file in process.open_files()):
                return True
        except (psutil.Error, OSError):
            continue
    return False


def _is_local(path: Path) -> bool:
    """On a disk of this machine alone, as far as the name of the file system tells."""
    real = Path(os.path.realpath(path))
    mounts = [m for m in psutil.disk_partitions(all=True) if real.is_relative_to(m.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda m: len(m.mountpoint)).fstype in LOCAL_FILE_SYSTEMS


def _is_prebuilt(op: str) -> bool:
    """As DeepSpeed's builder decides it: then it loads the op and locks nothing."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    return bool(installed_ops.get(op)) and accelerator_name == get_accelerator()._name
