"""What goes into one buffer comes out the same."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.workers.packing import ALIGNMENT, pack, unpack
from tests.helpers.batches import classification

DTYPES = (torch.uint8, torch.bool, torch.int64, torch.float32, torch.bfloat16, torch.float64)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6))
def test_any_tensors(parts):
    tensors = [torch.arange(torch.Size(shape).numel()).view(shape).to(dtype) for dtype, shape in parts]
    item = {"tensors": tensors, "more": ("text", 3, tensors[:1])}
    packed = pack(item)
    again = unpack(packed)
    assert again["more"][:2] == ("text", 3) and len(again["tensors"]) == len(tensors)
    for old, new in zip(tensors, again["tensors"], strict=True):
        assert new.dtype == old.dtype and new.shape == old.shape and torch.equal(new, old)
        assert new.data_ptr() == 0 or not new.numel() or (new.data_ptr() - packed.buffer_N.data_ptr()) % ALIGNMENT == 0
    assert packed.buffer_N.numel() <= sum(t.numel() * t.element_size() + ALIGNMENT for t in tensors)


def test_views_and_a_tensor_that_occurs_twice():
    table = torch.arange(6).view(2, 3)
    first, turned, wide, again = unpack(pack((table, table.t(), torch.arange(3).expand(4, 3), table)))
    assert torch.equal(turned, table.t()) and torch.equal(wide, torch.arange(3).expand(4, 3))
    assert first.data_ptr() == again.data_ptr()


def test_a_batch():
    batch = classification()
    again = unpack(pack(batch))
    assert type(again) is type(batch) and again.task == batch.task
    seen = []
    batch.map(lambda tensor: seen.append(tensor) or tensor)
    there = []
    again.map(lambda tensor: there.append(tensor) or tensor)
    assert len(seen) > 5 and all(torch.equal(a, b) for a, b in zip(seen, there, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in there}) == 1
    assert dataclasses.replace(again, weight=2.0).weight == 2.0


def test_what_the_other_side_keeps_is_not_sent():
    kept = [classification().candidates, {"table": torch.arange(1000)}]
    packed = pack({"own": torch.ones(2), "shared": kept[1], "again": kept[1], "first": kept[0]}, kept)
    assert packed.buffer_N.numel() == 2 * 4  # the two numbers of its own
    there = [kept[0], {"table": torch.zeros(1)}]
    found = unpack(packed, there)
    assert found["shared"] is there[1] and found["again"] is there[1] and found["first"] is there[0]
    assert found["own"].tolist() == [1, 1]
