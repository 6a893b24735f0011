"""The branches that a GPU takes, taken on a CPU, where they compute the same and are no faster: for counts and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

OF_A_GPU = {
    "model.moe.grouped.has_grouped_products": True,
    "model.moe.losses.adds_in_any_order": True,
    "model.moe.merge.mixes_all": True,
    "model.products_attention.is_slow_when_fused": False,
}
"""What each question about a device is answered with there."""


@contextlib.contextmanager
def branches_of_a_gpu() -> Iterator[None]:
    """In any precision."""
    with contextlib.ExitStack() as stack:
        for name, answer in OF_A_GPU.items():
            stack.enter_context(mock.patch(name, lambda x, answer=answer: answer))
        yield
