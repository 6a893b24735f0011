"""The bytes of one sample to its members: those that webdataset reads from the whole tar, but damage is an error.

tarfile takes a damaged header for the archive's end and believes the size of a sparse member, so headers are looked at one by
one. Contents are read right into their places: a sample is mostly one large member, which is not worth copying.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

from data.shards.links import files_of, is_no_file, not_here, plain, why_not
from data.shards.ranges import COMPRESSED, META

MAX_SAMPLE_BYTES = 256 << 20
_EXTENDED = b"xgLKX"
_SPARSE = "is sparse: its size may be anything; pack without tar --sparse (-S)"
_TOO_LARGE = "does not fit in the sample"


class Damage(Exception):
    """What is wrong with a sample's bytes. key: of its first member, where that could be read."""

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


def read_sample(
    file: BinaryIO,
    offset: int,
    length: int,
    url: str,
    most: int = MAX_SAMPLE_BYTES,
    targets: Callable[[], dict[str, tuple[int, int]]] | None = None,
) -> dict[str, bytes | str]:
    """The sample in bytes [offset, offset + length) of a tar: "__key__", "__url__" (as given) and extension -> bytes.

    most: bytes of the sample with what its hard links stand for; targets: see links.files_of, asked for where there is a link.

    Raises Damage, OSError.
    """
    file.seek(offset)
    key, members = _members(file, length)
    try:
        if members is None:
            file.seek(offset)
            members = _extended(_exactly(file, length, key), key)
        links = [header for header, content in members if content is None]
        if links:
            found = targets() if targets else files_of(file)
            places = {link.name: found.get(plain(link.linkname)) for link in links}
            linked = sum(place[1] for place in places.values() if place)
            if length + linked > most:
                raise Damage(f"{length + linked} bytes with its hard links, more than the limit of {most}", key)
            members = [
                (member, _linked(file, member, places[member.name], key) if content is None else content)
                for member, content in members
            ]
        return {"__url__": url} | _by_extension([(m.name, c or b"") for m, c in members], key)
    except (Damage, OSError):
        raise
    except Exception as error:  # whatever parsers make of damaged bytes
        raise Damage(str(error.args[0] if error.args else repr(error)), key) from error


def _linked(file: BinaryIO, link: tarfile.TarInfo, place: tuple[int, int] | None, key: str) -> bytes:
    if place is None:
        raise Damage(not_here(link), key)
    file.seek(place[0])
    return _exactly(file, place[1], key)


def _by_extension(members: list[tuple[str, bytes]], key: str) -> dict[str, bytes | str]:
    """As webdataset groups them: an extension begins at the first dot, and its letters are lower case."""
    contents: dict[str, bytes | str] = {}
    names: dict[str, str] = {}
    keys = set()
    for name, content in members:
        prefix, extension = base_plus_ext(name)
        if prefix is None or META.match(name):
            continue
        keys.add(prefix)
        extension = extension.lower()
        if extension in contents:
            raise Damage(
                f"duplicate member: {names[extension]!r} and {name!r} are both .{extension} of this sample", key
            )
        contents[extension], names[extension] = content, name
    if len(keys) != 1:
        raise Damage(f"{len(keys)} samples in the range of one; remove the shard's .index.json", key)
    return {"__key__": keys.pop(), **contents}


Members = list[tuple[tarfile.TarInfo, bytes | None]]
"""Headers and contents; None: of a hard link."""


def _members(file: BinaryIO, length: int) -> tuple[str, Members | None]:
    """(the first member's key, all members) from here on; None in place of members with extended headers (long names, times with
    fractions): taking those apart is left to tarfile. Raises Damage."""
    key, position = "?", 0
    members: Members | None = []
    while position < length:
        block = _exactly(file, min(tarfile.BLOCKSIZE, length - position), key)
        if position == 0 and COMPRESSED.match(block):
            raise Damage("compressed data in place of a tar header")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise Damage(f"tar header at byte {position} of the sample: {error}", key) from error
        if position == 0 and header.type not in _EXTENDED and not header.isdir():
            key = base_plus_ext(header.name)[0] or header.name
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise Damage(f"member {header.name!r} {_SPARSE}", key)
        extended = header.type in _EXTENDED  # a header for the next one
        size = header.size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES or extended else 0
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
        _take(members, header, content, key)
    return key, members


def _take(members: Members, header: tarfile.TarInfo, content: bytes, key: str) -> None:
    """Into the list, if it is a file of the sample. Raises Damage for what only looks like one."""
    if META.match(header.name) or base_plus_ext(header.name)[0] is None:
        return
    if is_no_file(header):
        raise Damage(why_not(header), key)
    if header.isreg() or header.islnk():
        members.append((header, None if header.islnk() else content))


def _extended(data: bytes, key: str) -> Members:
    """Members with headers of several blocks. Raises Damage for those that would be larger than what is there."""
    members: Members = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.issparse():
                raise Damage(f"member {member.name!r} {_SPARSE}", key)
            if member.size > len(data) and member.isreg():
                raise Damage(f"member {member.name!r} of {member.size} bytes {_TOO_LARGE}", key)
            start = member.offset_data
            _take(members, member, data[start : start + member.size] if member.isreg() else b"", key)
    return members


def _exactly(file: BinaryIO, size: int, key: str) -> bytes:
    """So many bytes, from a file that may be unbuffered. Raises Damage where it ends before."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise Damage("the file ends inside the sample", key)
        data += more
    return data
