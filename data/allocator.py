"""What a process does with memory that was freed."""

from __future__ import annotations

import ctypes

KEPT_BYTES = 64 << 20
"""At the end of the heap, at most."""
_LARGEST_IN_HEAP = 32 << 20  # what glibc allows
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of malloc.h


def keep_freed_memory() -> None:
    """From now on this process keeps what it freed for what it allocates next. By itself glibc hands the memory of every decoded
    image back to the system, which has to clear it page by page for the one after it. Other C libraries: nothing changes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
