"""Reading what others packed.

Archives are untrusted: nothing is unpacked to disk, sizes are checked before reading, and an archive with a
member that is no plain file inside the archive's own tree is refused.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from data.shards import DatasetError

MAX_LINE_BYTES = 1 << 20
_PACKING_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes after decompression."""

    member: int = 256 << 20
    archive: int = 100 << 30


@dataclasses.dataclass(frozen=True)
class Member:
    name: str
    data: bytes


def members(path: Path, limits: Limits) -> Iterator[Member]:
    """The files of a tar, tar.gz, tar.bz2 or tar.xz, in its order. Raises DatasetError."""
    return _walk(path, limits, contents=True)


def member_names(path: Path, limits: Limits) -> list[str]:
    """Names of the files, in order. Raises DatasetError."""
    return [member.name for member in _walk(path, limits, contents=False)]


def _walk(path: Path, limits: Limits, contents: bool) -> Iterator[Member]:
    seen: set[str] = set()
    total, last = 0, "the start"
    try:
        with tarfile.open(path, "r|*") as tar:
            for info in tar:
                name = info.name.removeprefix("./")
                parts = PurePosixPath(name).parts
                if info.isdir() or (parts and (parts[0] == "__MACOSX" or parts[-1].startswith("._"))):
                    continue  # folders, and what file managers leave behind
                total += info.size
                fault = _fault(info, name, parts, seen, total, limits)
                if fault:
                    raise DatasetError(f"{path}: member {info.name!r} {fault}; refused, pack the archive again")
                seen.add(name)
                file = tar.extractfile(info) if contents else None
                data = file.read() if file else b""
                last = f"member {name!r}"
                yield Member(name, data)
    except DatasetError:
        raise
    except _PACKING_ERRORS as error:
        raise DatasetError(f"{path}: cannot be read after {last} ({error}): not a tar, or cut off") from error


def _fault(
    info: tarfile.TarInfo, name: str, parts: tuple[str, ...], seen: set[str], total: int, limits: Limits
) -> str | None:
    if not info.isreg():
        return "is a link or device"
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        return "has a name that leads out of the archive"
    if name in seen:
        return "comes twice"
    if info.size > limits.member:
        return f"has {info.size} bytes, the limit is {limits.member}"
    if total > limits.archive:
        return f"makes {total} bytes in all, the limit is {limits.archive}"
    return None


def text_lines(path: Path, max_bytes: int) -> Iterator[str]:
    """Lines of a UTF-8 file, plain or gzipped, without their ends. Raises DatasetError."""
    number, total = 0, 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                total += len(line)
                if len(line) > MAX_LINE_BYTES:
                    raise DatasetError(f"{path}: line {number} has more than {MAX_LINE_BYTES} bytes")
                if total > max_bytes:
                    raise DatasetError(f"{path}: more than {max_bytes} bytes")
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: line {number} is no UTF-8 ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read after line {number} ({error})") from error


def records(path: Path, limits: Limits, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Objects of a JSON lines file that have the fields. Raises DatasetError with the line's number."""
    for number, line in enumerate(text_lines(path, limits.member), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: line {number}: {error}") from error
        for field, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(field), kind):
                wanted = f'"{field}" ({kind.__name__})'
                raise DatasetError(f"{path}: line {number}: needs {wanted}, found {line[:80]!r}")
        yield record


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
