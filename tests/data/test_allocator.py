"""Freed memory is used again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from data.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    arrays = [np.ones(3 << 20, np.uint8) for _ in range(8)]
for _ in range(5):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_what_was_freed_is_not_fetched_again():
    """Pages that the system has to provide for 24 MiB that are allocated and freed again and again."""
    pages = {
        way: int(
            subprocess.run([sys.executable, "-c", PROGRAM, way], check=True, capture_output=True, text=True).stdout
        )
        for way in ("keep", "default")
    }
    assert pages["keep"] < 100 < 1000 < pages["default"], pages
