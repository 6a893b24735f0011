"""Freed memory is used again."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from torch.utils.data import IterableDataset

from data.workers.loader import loader_of
from tests.helpers.limits import within

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")

PROGRAM = """
import ctypes, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, whatever the machine's setting
from data.workers.processes import keep_freed_memory
from tests.data.workers.test_processes import pages
if sys.argv[1] == "keep":
    keep_freed_memory()
print(pages())
"""


def pages() -> int:
    """That the system provides for 24 MiB, allocated and freed, once they were so several times."""

    def use() -> None:
        arrays = [np.ones(3 << 20, np.uint8) for _ in range(8)]
        assert len(arrays) == 8

    for _ in range(5):
        use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        use()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20


@glibc
def test_what_was_freed_is_not_fetched_again():
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    found = {
        way: int(
            subprocess.run([sys.executable, "-c", PROGRAM, way], check=True, stdout=subprocess.PIPE, env=plain).stdout
        )
        for way in ("keep", "default")
    }
    assert found["keep"] < 100 < 1000 < found["default"], found


class Measured(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        yield pages()


@glibc
def test_workers_keep_what_they_freed():
    with within(60):
        assert next(loader_of(Measured(), 1)) < 100
