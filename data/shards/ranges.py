"""Where in a tar each sample stands: from the shard's index, or by scanning the headers."""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import numpy as np
from webdataset.tariterators import base_plus_ext

from data.shards.files import index_path

MAX_INDEX_BYTES = 256 << 20
META = re.compile(r"__[^/]*__($|/)")  # webdataset skips members with such names


@dataclasses.dataclass(frozen=True)
class Place:
    """The byte range of one sample in its tar: all members with their headers."""

    key: str
    offset: int
    length: int


def load_ranges(path: Path) -> tuple[np.ndarray, str | None]:
    """(offset and length of every sample [N, 2], fault): from the index if it fits, else by scanning."""
    index = index_path(path)
    fault = None
    if index.is_file():
        try:
            return _read_index(index, path.stat().st_size), None
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
            fault = f"{index.name} is not used ({error})"
    places, scan_fault = scan(path)
    ranges_N2 = np.array([(p.offset, p.length) for p in places], dtype=np.int64).reshape(-1, 2)
    return ranges_N2, "; ".join(part for part in (fault, scan_fault) if part) or None


def _read_index(index: Path, tar_bytes: int) -> np.ndarray:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise ValueError(f"larger than {MAX_INDEX_BYTES} bytes")
    content = json.loads(index.read_bytes())
    if content["version"] != 1:
        raise ValueError(f"version {content['version']!r}, expected 1")
    if content.get("tar_bytes", tar_bytes) != tar_bytes:
        raise ValueError(f"made for a tar of {content['tar_bytes']} bytes, found {tar_bytes}")
    pairs = [(sample["offset"], sample["length"]) for sample in content["samples"]]
    ranges_N2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    if len(ranges_N2) and (ranges_N2.min() < 0 or int(ranges_N2.sum(axis=1).max()) > tar_bytes):
        raise ValueError("byte ranges outside the tar")
    return ranges_N2


def scan(path: Path) -> tuple[list[Place], str | None]:
    """The complete samples of a tar, by its headers, and what is wrong with it.

    A sample is known to be complete when a member of another sample or the tar's end mark follows it.
    """
    places: list[Place] = []
    size = path.stat().st_size
    end, reason, complete = 0, "no end mark", False
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key = base_plus_ext(member.name)[0]
                if not end <= member.offset < tar.offset <= size:
                    # Cut off inside this member, or sizes that make no sense.
                    complete = bool(places) and key is not None and key != places[-1].key
                    break
                end = tar.offset
                if not member.isreg() or META.match(member.name) or key is None:
                    continue
                start = places.pop().offset if places and places[-1].key == key else member.offset
                places.append(Place(key, start, end - start))
            file.seek(end)
            mark = file.read(tarfile.BLOCKSIZE)
            if len(mark) == tarfile.BLOCKSIZE and not any(mark):
                return places, None
    except (tarfile.TarError, ValueError, KeyError, OverflowError, OSError) as error:
        reason = str(error)
    places = places if complete else places[:-1]
    return places, f"cut off or damaged at byte {end} of {size} ({reason}); {len(places)} samples are used"
