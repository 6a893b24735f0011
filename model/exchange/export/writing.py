"""Folders that appear whole, and safetensors written a tensor at a time: nothing but the tensor at hand is in memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.exchange.export.errors import ExportError
from model.exchange.export.merging import Entry

INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
"""Of one file, as the Hugging Face hub has it; a larger tensor has a file of its own."""


@contextlib.contextmanager
def new_folder(out: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder that takes the name `out` when the block ends well, and vanishes otherwise.

    Raises ExportError where there is something already: without `overwrite` anything, with it what is not `is_ours`; and where the disk
    refuses.
    """
    out = Path(os.path.abspath(out))
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"{out} is there and is no folder: give another --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ExportError(f"{out} is not empty: give another --out, or --overwrite to replace an earlier export")
        if not is_ours(out):
            raise ExportError(f"{out} holds something else than an export, and is not overwritten: give another --out")
    unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if out.is_dir():
            old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
            os.replace(out, old)
            os.replace(unfinished, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(unfinished, out)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_weights(folder: Path, entries: Sequence[Entry], max_bytes: int = MAX_SHARD_BYTES) -> int:
    """All tensors as fp32, in files of `max_bytes` at most, and their index. Returns the bytes of all."""
    shards = list(_shards(entries, max_bytes))
    where: dict[str, str] = {}
    with tqdm(total=len(entries), unit=" tensors", disable=None) as progress:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(folder / name, shard, lambda: progress.update())
            where |= {entry.name: name for entry in shard}
    total = sum(_bytes(entry) for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return total


def _bytes(entry: Entry) -> int:
    return 4 * math.prod(entry.shape)


def _shards(entries: Iterable[Entry], max_bytes: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    for entry in entries:
        if shard and sum(map(_bytes, shard)) + _bytes(entry) > max_bytes:
            yield shard
            shard = []
        shard.append(entry)
    yield shard


def _write_shard(path: Path, shard: list[Entry], done: Callable[[], object]) -> None:
    """The header follows from shapes, so tensors can be made one after another."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in shard:
        start, end = end, end + _bytes(entry)
        header[entry.name] = {"dtype": "F32", "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in shard:
            tensor: Tensor = entry.make()
            assert tuple(tensor.shape) == entry.shape, entry.name
            file.write(memoryview(tensor.to(torch.float32).contiguous().numpy()).cast("B") if tensor.numel() else b"")
            done()
        file.flush()
        os.fsync(file.fileno())
