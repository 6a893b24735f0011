"""Spans of stored runs into wanted ones, against cutting the whole tensor."""

from __future__ import annotations

import math
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.checkpoints import resharding
from parallel.checkpoints.resharding import Run, boxes, copy_overlap
from parallel.placement import Cut, Placement


@st.composite
def runs(draw, shape: tuple[int, ...]) -> Run:
    cuts = []
    for dim in draw(st.permutations(range(len(shape)))):
        count = draw(st.sampled_from([n for n in (1, 1, 2, 3) if shape[dim] % n == 0]))
        if count > 1:
            cuts.append(Cut(dim, "axis", draw(st.integers(0, count - 1)), count))
    placement = Placement(shape, tuple(cuts))
    numel = math.prod(placement.local_shape)
    start, stop = sorted((draw(st.integers(0, numel)), draw(st.integers(0, numel))))
    return Run(placement, *draw(st.sampled_from([(start, stop), (0, numel)])))


def flat(logical: torch.Tensor, run: Run) -> torch.Tensor:
    return run.placement.take(logical).reshape(-1)[run.start : run.stop]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), span=st.integers(1, 30), gap=st.sampled_from([0, 3, 1000]))
def test_any_run_into_any_other(data, span, gap):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
    stored, wanted = data.draw(runs(shape)), data.draw(runs(shape))
    logical = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    source, expected = flat(logical, stored), flat(logical, wanted)
    asked = 0

    def read(start: int, numel: int) -> torch.Tensor:
        nonlocal asked
        assert start >= 0 and start + numel <= len(source) and numel > 0
        asked += numel
        return source[start : start + numel].clone()

    out = torch.full_like(expected, -1.0)
    with mock.patch.multiple(resharding, SPAN=span, GAP=gap):
        copy_overlap(read, stored, wanted, out)
    shared = torch.isin(expected, source)
    assert torch.equal(out, torch.where(shared, expected, -1.0))
    if gap == 0:
        assert asked == shared.sum(), "read what nobody wanted"


@given(data=st.data())
def test_boxes_are_the_run_in_its_order(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    run = data.draw(runs(shape))
    logical = torch.arange(math.prod(shape)).view(shape)
    found = list(boxes(run))
    assert len(found) <= 2 * len(shape) - 1
    parts, end = [logical.new_empty(0)], 0
    for box in found:
        assert box.offset == end
        end += math.prod(box.size)
        parts.append(logical[tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))].reshape(-1))
    assert torch.equal(torch.cat(parts), flat(logical, run))


def test_a_column_of_a_matrix_by_hand():
    """Stored: rows 0 and 1 of [4, 4], from element 1 on. Wanted: columns 2 and 3. Shared: 2, 3 and 6, 7."""
    stored = Run(Placement((4, 4), (Cut(0, "expert", 0, 2),)), 1, 8)
    wanted = Run(Placement((4, 4), (Cut(1, "tensor", 1, 2),)), 0, 8)
    source, out = torch.arange(1.0, 8.0), torch.zeros(8)
    copy_overlap(lambda start, numel: source[start : start + numel], stored, wanted, out)
    assert out.tolist() == [2, 3, 6, 7, 0, 0, 0, 0]
