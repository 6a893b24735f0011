"""One sample at a time out of the shards of a split."""

from __future__ import annotations

import dataclasses
import glob
import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from data.shards.errors import BadSample, DatasetError
from data.shards.files import check_split, index_path
from data.shards.ranges import META, load_ranges

MAX_SAMPLE_BYTES = 256 << 20
# A stream that starts so would be unpacked by tarfile, without limit, before it is parsed.
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh.1AY&SY|\x5d\x00\x00\x80|\xfd7zXZ")


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSet:
    """Shards for reading samples one by one; holds no open file, so it may be copied to other processes.

    offsets, lengths  per shard, the byte range of each sample
    faults            what was wrong with shards or indexes; samples that are lost by it are in no count
    """

    paths: tuple[Path, ...]
    offsets: tuple[np.ndarray, ...]
    lengths: tuple[np.ndarray, ...]
    faults: tuple[str, ...] = ()
    max_sample_bytes: int = MAX_SAMPLE_BYTES

    @classmethod
    def open(cls, directory: Path | str, split: str, max_sample_bytes: int = MAX_SAMPLE_BYTES) -> ShardSet:
        """All `<split>-*.tar` of the folder, by name. Raises DatasetError."""
        directory = Path(directory)
        check_split(split)
        paths = sorted(directory.glob(f"{split}-*.tar"))
        if not paths:
            present = sorted({path.name.rsplit("-", 1)[0] for path in directory.glob("*-*.tar")})
            found = (
                f"splits {', '.join(present)}" if present else "no shards" if directory.is_dir() else "no such folder"
            )
            raise DatasetError(f"{directory} has no shard {split}-*.tar; found: {found}")
        return cls._of_paths(paths, max_sample_bytes)

    @classmethod
    def from_urls(cls, urls: Iterable[str], max_sample_bytes: int = MAX_SAMPLE_BYTES) -> ShardSet:
        """Shards by path, {000..012} braces or * globs, in the order given. Raises DatasetError."""
        paths: list[Path] = []
        for url in itertools.chain.from_iterable(braceexpand.braceexpand(url) for url in urls):
            if re.match(r"(?!file:)[a-z0-9+]+:", url):
                raise DatasetError(
                    f"{url}: only local files can be read: copy or mount the shards and give their paths"
                )
            path = url.removeprefix("file:")
            found = sorted(glob.glob(path)) if glob.has_magic(path) else [path] if os.path.isfile(path) else []
            if not found:
                raise DatasetError(f"{url}: no such shard")
            paths += [Path(name) for name in found]
        if not paths:
            raise DatasetError("the list of shards is empty")
        return cls._of_paths(paths, max_sample_bytes)

    @classmethod
    def _of_paths(cls, paths: list[Path], max_sample_bytes: int) -> ShardSet:
        offsets, lengths, faults = [], [], []
        for path in paths:
            ranges_N2, fault = load_ranges(path)
            offsets.append(ranges_N2[:, 0])
            lengths.append(ranges_N2[:, 1])
            if fault:
                faults.append(f"{path.name}: {fault}")
        if not any(len(shard) for shard in offsets):
            raise DatasetError(
                f"{paths[0].parent}: {len(paths)} shards without a sample" + "".join(f"; {f}" for f in faults[:1])
            )
        return cls(tuple(paths), tuple(offsets), tuple(lengths), tuple(faults), max_sample_bytes)

    def __len__(self) -> int:
        """Samples in all."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(len(shard) for shard in self.offsets)

    def describe(self, shard: int, index: int) -> str:
        """Where a sample stands, for messages."""
        return f"{self.paths[shard].name} sample {index} at byte {self.offsets[shard][index]}"

    def read(self, shard: int, index: int) -> dict[str, bytes | str]:
        """Sample `index` of shard `shard`: "__key__", "__url__" and extension -> bytes.

        Raises BadSample for whatever is wrong with the file's content, and nothing else.
        """
        place = self.describe(shard, index)
        length = int(self.lengths[shard][index])
        if length > self.max_sample_bytes:
            raise BadSample(f"{place}: {length} bytes, more than the limit of {self.max_sample_bytes}")
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(int(self.offsets[shard][index]))
                data = file.read(length)
        except OSError as error:
            raise BadSample(f"{place}: {error}") from error
        if len(data) < length:
            raise BadSample(f"{place}: the file ends {length - len(data)} bytes too early")
        key, damage, plain = _check_headers(data)
        place = f"{place}, key {key!r}"
        if damage:
            raise BadSample(f"{place}: {damage}")
        parsed = tar_file_iterator(io.BytesIO(data)) if plain is None else plain
        members = ({**member, "__url__": str(self.paths[shard])} for member in parsed)
        try:
            samples = list(group_by_keys(members))
        except Exception as error:  # whatever a parser makes of damaged bytes
            raise BadSample(f"{place}: {error.args[0] if error.args else error!r}") from error
        if len(samples) != 1:
            stale = index_path(self.paths[shard]).name
            raise BadSample(f"{place}: {len(samples)} samples in the range of one; remove {stale}")
        return samples[0]


def _check_headers(data: bytes) -> tuple[str, str | None, list[dict[str, Any]] | None]:
    """(key of the first member, damage or None, members). tarfile silently takes a damaged header for the end.

    members: what tar_file_iterator would say, which takes longer, where all are plain files; else None.
    """
    key, position = "?", 0
    members: list[dict[str, Any]] = []
    plain = True
    if _COMPRESSED.match(data):
        return key, "compressed data in place of a tar header", None
    while position < len(data):
        try:
            header = tarfile.TarInfo.frombuf(data[position : position + tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            return key, f"tar header at byte {position} of the sample: {error}", None
        if position == 0 and header.isreg():
            key = base_plus_ext(header.name)[0] or header.name
        stored = (
            -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE if header.isreg() or header.type in b"xgLK" else 0
        )
        if header.size < 0 or position + tarfile.BLOCKSIZE + stored > len(data):
            return key, f"member {header.name!r} of {header.size} bytes does not fit in the sample", None
        content = position + tarfile.BLOCKSIZE
        plain = plain and header.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not META.match(header.name)
        members.append({"fname": header.name, "data": data[content : content + header.size]})
        position = content + stored
    return key, None, members if plain else None
