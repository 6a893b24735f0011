"""The bytes of one sample to its members: those that webdataset reads from the whole tar, but damage is an error.

tarfile takes a damaged header for the archive's end and believes the size of a sparse member, so headers are looked at one by
one. Contents are read right into their places: a sample is mostly one large member, which is not worth copying.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from data.shards.ranges import COMPRESSED, META

_SPARSE = "is sparse: its size may be anything"
_TOO_LARGE = "does not fit in the sample"


class Damage(Exception):
    """What is wrong with a sample's bytes. key: of its first member, where that could be read."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


def read_sample(file: BinaryIO, offset: int, length: int, url: str) -> dict[str, bytes | str]:
    """The sample in bytes [offset, offset + length) of a tar: "__key__", "__url__" (as given) and extension -> bytes.

    Raises Damage, OSError.
    """
    file.seek(offset)
    key, members = _members(file, length)
    try:
        if members is None:
            file.seek(offset)
            members = _extended(_exactly(file, length, key), key)
        samples = list(group_by_keys({**member, "__url__": url} for member in members))
    except (Damage, OSError):
        raise
    except Exception as error:  # whatever parsers make of damaged bytes
        raise Damage(str(error.args[0] if error.args else repr(error)), key) from error
    if len(samples) != 1:
        raise Damage(f"{len(samples)} samples in the range of one; remove the shard's .index.json", key)
    return samples[0]


def _members(file: BinaryIO, length: int) -> tuple[str, list[dict[str, Any]] | None]:
    """(the first member's key, all members as webdataset's tar_file_iterator gives them) from here on; None in place of members
    with extended headers (long names, times with fractions): taking those apart is left to it. Raises Damage."""
    key, position = "?", 0
    members: list[dict[str, Any]] | None = []
    while position < length:
        block = _exactly(file, min(tarfile.BLOCKSIZE, length - position), key)
        if position == 0 and COMPRESSED.match(block):
            raise Damage("compressed data in place of a tar header")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise Damage(f"tar header at byte {position} of the sample: {error}", key) from error
        if position == 0 and header.isreg():
            key = base_plus_ext(header.name)[0] or header.name
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise Damage(f"member {header.name!r} {_SPARSE}", key)
        extended = header.type in b"xgLK"  # a header for the next one
        size = header.size if header.isreg() or extended else 0
        padding = -size % tarfile.BLOCKSIZE
        position += tarfile.BLOCKSIZE + size + padding
        if header.size < 0 or position > length:
            raise Damage(f"member {header.name!r} of {header.size} bytes {_TOO_LARGE}", key)
        if extended:
            members = None
        if members is None:
            file.seek(size + padding, os.SEEK_CUR)
            continue
        content = _exactly(file, size, key)
        _exactly(file, padding, key)
        if header.isreg() and not META.match(header.name):
            members.append({"fname": header.name, "data": content})
    return key, members


def _extended(data: bytes, key: str) -> list[dict[str, Any]]:
    """Members with headers of several blocks. Raises Damage for those that would be larger than what is there."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.issparse():
                raise Damage(f"member {member.name!r} {_SPARSE}", key)
            if member.size > len(data):
                raise Damage(f"member {member.name!r} of {member.size} bytes {_TOO_LARGE}", key)
    return list(tar_file_iterator(io.BytesIO(data)))


def _exactly(file: BinaryIO, size: int, key: str) -> bytes:
    """So many bytes, from a file that may be unbuffered. Raises Damage where it ends before."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise Damage("the file ends inside the sample", key)
        data += more
    return data
