"""Where in a tar each sample stands: from the shard's index, or by scanning the headers."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from webdataset.tariterators import base_plus_ext

from data.shards.files import index_path, open_plain

MAX_INDEX_BYTES = 256 << 20
ZEROS_BYTES = 1 << 20
"""Looked through at a time behind an end mark; tar leaves up to 10 KiB there."""
# Streams that start so would be unpacked by tarfile, without limit, before they are parsed.
COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh.1AY&SY|\x5d\x00\x00\x80|\xfd7zXZ|\x28\xb5\x2f\xfd")
META = re.compile(r"__[^/]*__($|/)")  # webdataset skips members with such names


@dataclasses.dataclass(frozen=True)
class SampleRange:
    """The byte range of one sample in its tar: all members with their headers."""

    key: str
    offset: int
    length: int


def load_ranges(path: Path) -> tuple[np.ndarray, str | None]:
    """(offset and length of every sample [N, 2], fault): from the index if it fits, else by scanning. Raises OSError."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return read_index(path)
    places, fault = scan(path)
    return np.array([(p.offset, p.length) for p in places], dtype=np.int64).reshape(-1, 2), fault


def read_index(path: Path) -> tuple[np.ndarray, str | None]:
    """What the shard's index says. Raises FileNotFoundError, and ValueError where it does not fit or cannot be read."""
    index = index_path(path)
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"larger than {MAX_INDEX_BYTES} bytes")
        return parse_index(index.read_bytes(), path.stat().st_size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(str(error.strerror)) from error


def parse_index(content: bytes, tar_bytes: int | None = None) -> tuple[np.ndarray, str | None]:
    """(ranges [N, 2], what was wrong with the tar when it was indexed). Raises ValueError if it does not fit a tar of so many bytes."""
    try:
        index = json.loads(content)
        version, made_for, samples = index["version"], index.get("tar_bytes"), index["samples"]
        if version != 1:
            raise ValueError(f"version {version!r}, expected 1")
        ranges_N2 = np.array([(s["offset"], s["length"]) for s in samples], dtype=np.int64).reshape(-1, 2)
        if tar_bytes is None:
            tar_bytes = int(made_for)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if made_for not in (None, tar_bytes):
        raise ValueError(f"made for a tar of {made_for} bytes, found {tar_bytes}")
    if len(ranges_N2) and (ranges_N2.min() < 0 or int(ranges_N2.sum(axis=1).max()) > tar_bytes):
        raise ValueError("byte ranges outside the tar")
    fault = index.get("fault")
    return ranges_N2, fault if isinstance(fault, str) else None


def index_of(places: list[SampleRange], tar_bytes: int, fault: str | None = None) -> bytes:
    """The content of an index file: ASCII, as names in a tar may be no UTF-8."""
    index = {"version": 1, "tar_bytes": tar_bytes, "samples": [dataclasses.asdict(place) for place in places]}
    return json.dumps(index | ({"fault": fault} if fault else {}), separators=(",", ":")).encode("ascii")


def scan(path: Path) -> tuple[list[SampleRange], str | None]:
    """The complete samples of a tar, by its headers, and what is wrong with it. Raises OSError where it cannot be read."""
    found = survey(path)
    return found.places, found.fault


@dataclasses.dataclass(frozen=True)
class Survey:
    """places   the complete samples
    fault    samples that are lost, and why
    caution  nothing is lost here, but other readers stop at an end mark and see fewer samples
    """

    places: list[SampleRange]
    fault: str | None = None
    caution: str | None = None


def survey(path: Path) -> Survey:
    """All that the headers of a tar tell. Raises OSError where it cannot be read.

    A sample is known to be complete when a member of another sample or the tar's end mark follows it. `cat a.tar b.tar` puts
    samples behind an end mark; they are read like the others.
    """
    places: list[SampleRange] = []
    start, members, caution = 0, 0, None
    with io.BufferedReader(open_plain(path)) as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            part = _part(file, start, size, places)
            members += part.members
            if part.reason is not None:
                break
            mark = part.end
            following, zeros = _next_data(file, mark)
            if following is None:
                none = None if places or not members else f"none of its {members} members is named KEY.EXTENSION"
                return Survey(places, none and f"a tar without a sample: {none}", caution)
            start = following
            behind = f"{size - start} bytes follow the end mark at byte {mark}"
            caution = caution or f"{behind}: programs that stop there do not see them; unpack the tars and pack one"
            if zeros == 1 and places and _starts_otherwise(file, start):
                places.pop()  # a header of its members may have been there
    if not places and not members and not start:
        return Survey([], f"no tar: {_kind_of(path)}")
    if start and not part.members:
        return Survey(places, f"{behind} and are no tar; {len(places)} samples are used")
    return Survey(
        places, f"cut off or damaged at byte {part.end} of {size} ({part.reason}); {len(places)} samples are used"
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Up to an end mark at byte `end`, or with a reason to the place where it cannot go on."""

    end: int
    members: int
    reason: str | None


def _part(file: BinaryIO, start: int, size: int, places: list[SampleRange]) -> _Part:
    """Adds the samples from byte `start` to the next end mark to `places`."""
    before, end, members, reason, complete = len(places), start, 0, "no end mark", False
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key = base_plus_ext(member.name)[0]
                if not end <= member.offset < tar.offset <= size:
                    # Cut off inside this member, or sizes that make no sense.
                    complete = len(places) > before and key is not None and key != places[-1].key
                    break
                end, members = tar.offset, members + 1
                # Links and devices are kept: reading says what they are.
                if member.isdir() or META.match(member.name) or key is None:
                    continue
                again = len(places) > before and places[-1].key == key
                first = places.pop().offset if again else member.offset
                places.append(SampleRange(key, first, end - first))
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
            if len(mark) == tarfile.BLOCKSIZE and not any(mark):
                return _Part(end, members, None)
    except (tarfile.TarError, ValueError, KeyError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one is a place which no file has
            raise
        reason = str(error)
    if not complete:
        del places[max(before, len(places) - 1) :]
    return _Part(end, members, reason)


def _next_data(file: BinaryIO, position: int) -> tuple[int | None, int]:
    """(the next block that is not zero, None if only zeros follow; blocks of zeros before it)."""
    file.seek(position)
    start = position
    while chunk := file.read(ZEROS_BYTES):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        position += zeros
        if zeros < len(chunk):
            position -= position % tarfile.BLOCKSIZE
            return position, (position - start) // tarfile.BLOCKSIZE
    return None, 0


def _starts_otherwise(file: BinaryIO, position: int) -> bool:
    """Whether no header stands there."""
    file.seek(position)
    try:
        tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return True
    return False


def _kind_of(path: Path) -> str:
    """What a file is that should have been a tar."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if not head:
        return "the file is empty"
    if COMPRESSED.match(head):
        return "it is compressed; unpack it, since samples are read one by one"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return f"a page of HTML or XML, {head[:60]!r}"
    return f"starts with {head[:24]!r}"
