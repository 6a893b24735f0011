"""Files that are on the disk when the call returns: text, and safetensors written a chunk at a time.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and byte range of every
tensor, padded with spaces to a multiple of 8), and the tensors' bytes one after another. The header follows from shapes alone,
so nothing but a chunk need be on the host beside the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from parallel.checkpoints.fragments import CheckpointError
from parallel.checkpoints.manifest import StoredFile

CHUNK = 1 << 22
"""Elements (16 MiB of fp32) that are copied to the host, hashed and written at a time."""
MAX_HEADER_BYTES = 100_000_000
"""Readers of the format refuse a larger one."""


def write_tensors(path: Path, tensors: deque[tuple[str, Tensor]]) -> StoredFile:
    """Write flat tensors as fp32 and sync. `tensors` is emptied on the way, so that a snapshot shrinks while it is written.

    Raises CheckpointError with the file and the system's reason.
    """
    header = _header(path, tensors)
    total = len(header) + 4 * sum(tensor.numel() for _, tensor in tensors)
    checksum = hashlib.sha256()

    def counted() -> Iterator[memoryview]:
        for part in _parts(header, tensors):
            checksum.update(part)
            yield part

    try:
        write_durably(path, counted())
    except OSError as error:
        raise CheckpointError(f"{path} ({total:,} bytes) cannot be written: {error.strerror}") from error
    return StoredFile(bytes=total, sha256=checksum.hexdigest())


def _header(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, dict] = {}
    end = 0
    for key, tensor in tensors:
        assert key not in entries, key
        start, end = end, end + 4 * tensor.numel()
        entries[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: {len(entries):,} tensors need a header above {MAX_HEADER_BYTES:,} bytes")
    return len(text).to_bytes(8, "little") + text


def _parts(header: bytes, tensors: deque[tuple[str, Tensor]]) -> Iterator[memoryview]:
    assert sys.byteorder == "little"
    yield memoryview(header)
    buffer = torch.empty(0)
    while tensors:
        _, tensor = tensors.popleft()
        for chunk in tensor.detach().reshape(-1).split(CHUNK):
            if chunk.is_cpu and chunk.dtype == torch.float32:
                host = chunk
            else:
                if buffer.numel() < chunk.numel():
                    buffer = torch.empty(chunk.numel())
                host = buffer[: chunk.numel()].copy_(chunk)
            if chunk.numel():
                yield memoryview(host.numpy()).cast("B")


def write_durably(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    """Write a new file and sync it. Raises OSError, also if the file exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """A reader sees the old text or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    write_durably(temporary, [text.encode()], mode)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Names that were made or changed in the folder outlive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
