"""Our safetensors writer: what it writes is read by the library, has the size of its numbers, and needs a chunk of memory."""

from __future__ import annotations

import hashlib
import json
import resource
from collections import deque
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from parallel.checkpoints import CheckpointError, files, save
from parallel.checkpoints.files import write_atomically, write_tensors
from tests.helpers.distributed import run_ranks
from tests.helpers.fragments import filled

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda name: f"weight/{name}")


@settings(max_examples=50, deadline=None)
@given(sizes=st.dictionaries(NAMES, st.integers(0, 40), max_size=5), chunk=st.integers(1, 50))
def test_the_library_reads_what_we_write(tmp_path_factory, sizes, chunk):
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    tensors = {name: torch.rand(numel) for name, numel in sizes.items()}
    with mock.patch.object(files, "CHUNK", chunk):
        stored = write_tensors(path, deque(tensors.items()))
    assert stored.bytes == path.stat().st_size
    assert stored.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    with safe_open(path, framework="pt") as opened:
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor) and torch.equal(opened.get_tensor(name), tensor)
            assert torch.equal(opened.get_slice(name)[1:3], tensor[1:3])


def test_layout_by_hand(tmp_path):
    """8 bytes of length, the header padded to a multiple of 8, two numbers."""
    write_tensors(tmp_path / "x", deque([("weight/w", torch.tensor([1.0, 2.0], dtype=torch.bfloat16))]))
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and len(data) == 8 + length + 2 * 4
    assert json.loads(data[8 : 8 + length]) == {"weight/w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    assert data[8 + length :] == b"\x00\x00\x80\x3f\x00\x00\x00\x40"


def test_a_view_is_written_without_the_rest_of_its_storage(tmp_path):
    whole = torch.zeros(1_000_000)
    done = save(tmp_path, 1, [filled(0.0, 30_000)], {})
    view = filled(0.0, 30_000)
    view.tensors["weight"] = whole[500:30_500]
    for folder, size in ((done.folder, done.bytes), (save(tmp_path, 2, [view], {}).folder, None)):
        file = folder / "rank_00000.safetensors"
        assert 30_000 * 4 <= file.stat().st_size <= 30_000 * 4 * 1.01
        assert size in (None, sum(path.stat().st_size for path in folder.iterdir()))


def test_a_chunk_is_copied_at_a_time(tmp_path):
    """Low precision is widened on the way: 32 Mi numbers of 2 bytes become 128 MiB, 16 MiB at a time."""
    (growth,) = run_ranks(1, growth_of_writing, str(tmp_path / "x"))
    assert (tmp_path / "x").stat().st_size > 1 << 27
    assert growth < 64 << 20


def growth_of_writing(rank: int, path: str) -> int:
    from pathlib import Path

    tensor = torch.ones(1 << 25, dtype=torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_tensors(Path(path), deque([("weight/w", tensor)]))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_a_header_that_readers_refuse_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_HEADER_BYTES", 32)
    with pytest.raises(CheckpointError, match="header above 32 bytes"):
        save(tmp_path, 1, [filled(1.0)], {})
    assert list(tmp_path.iterdir()) == []


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "note"
    write_atomically(path, "first")
    write_atomically(path, "second")
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]
