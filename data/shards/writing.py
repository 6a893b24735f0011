"""Samples to shards, always the same bytes for the same samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from webdataset.tariterators import base_plus_ext
from webdataset.writer import TarWriter

from data.shards.errors import DatasetError
from data.shards.files import check_split, index_path, list_name, replacing
from data.shards.lists import ShardList, ShardRow, write_list
from data.shards.ranges import META, SampleRange, index_of

Content = bytes | str | int | dict[str, Any]


def write_shards(
    directory: Path | str,
    split: str,
    samples: Iterable[dict[str, Content]],
    samples_per_shard: int = 1000,
) -> list[Path]:
    """Write `<split>-000000.tar` ..., their indexes and their list; the same samples always give the same bytes.

    A sample is "__key__" and extension -> content: bytes, str (UTF-8), int (decimal) or dict (JSON). A shard
    appears under its name when it is complete. Raises DatasetError for keys that webdataset would read
    otherwise, keys twice in a shard, and when the folder has shards of this split already.
    """
    directory = Path(directory)
    check_split(split)
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(directory.glob(f"{split}-*.tar"))
    if old:
        raise DatasetError(f"{old[0]} exists: remove the shards of split {split}, or choose another folder")
    rows: list[ShardRow] = []
    remaining = iter(samples)
    for first in remaining:
        path = directory / f"{split}-{len(rows):06d}.tar"
        count = write_shard(path, itertools.chain([first], itertools.islice(remaining, samples_per_shard - 1)))
        rows.append(ShardRow(path.name, count, path.stat().st_size))
    if rows:
        write_list(directory / list_name(split), ShardList.of(rows))
    return [directory / row.name for row in rows]


def write_shard(path: Path, samples: Iterable[dict[str, Content]]) -> int:
    """One shard and its index, for writers that divide the work; a shard of the same name is replaced. Returns the number of
    samples. The split's list is not touched, see write_shard_list. Raises DatasetError."""
    places: dict[str, SampleRange] = {}
    with (
        replacing(path) as file,
        TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False) as writer,
    ):
        for sample in samples:
            key = sample["__key__"]
            if not isinstance(key, str) or key in places:
                raise DatasetError(f"{path}: key {key!r} is no text or comes twice")
            contents: dict[str, str | bytes] = {"__key__": key}
            for extension, content in sample.items():
                if extension != "__key__":
                    _check_name(path, key, extension)
                    contents[extension] = _to_bytes(path, extension, content)
            if len(contents) == 1:
                raise DatasetError(f"{path}: key {key!r} has no members")
            start = writer.tarstream.offset
            writer.write(contents)
            places[key] = SampleRange(key, start, writer.tarstream.offset - start)
    with replacing(index_path(path)) as file:
        file.write(index_of(list(places.values()), path.stat().st_size))
    return len(places)


def _check_name(path: Path, key: str, extension: str) -> None:
    name = f"{key}.{extension}"
    escapes = key.startswith("/") or ".." in key.split("/")
    if escapes or META.match(name) or base_plus_ext(name) != (key, extension) or extension != extension.lower():
        raise DatasetError(
            f"{path}: member {name!r}: a key must be relative and have no dot after the last /, "
            "an extension must be lower case"
        )


def _to_bytes(path: Path, extension: str, content: Content) -> bytes:
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False).encode()
    if isinstance(content, int):
        return str(content).encode()
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, bytes):
        return content
    raise DatasetError(f"{path}: member .{extension} is a {type(content).__name__}; use bytes, str, int or dict")
