"""Folders, tars and zips as lists of files that any process can read one by one.

What others packed is untrusted: nothing is written under a name of theirs, sizes are checked before reading, and a
container with a member that is no plain file inside its own tree is refused.
"""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

from data.shards import BadSample, DatasetError

MAX_HEADER_BYTES = 16 << 20
_BLOCK = 1 << 20
_PACKERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
TOOLS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"}
"""Names that belong to no data set, besides those that begin with a dot."""
_PACKING_ERRORS = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes after decompression, and a number of files.

    member       one image, clip or text
    archive      all members of one archive
    annotations  a file of captions, labels or questions, which is held in memory
    files        members of an archive, files of a folder
    """

    member: int = 256 << 20
    archive: int = 100 << 30
    annotations: int = 1 << 30
    files: int = 50_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """Where the bytes of one file stand. `offset` is that in a tar, otherwise 0."""

    kind: Literal["folder", "tar", "zip"]
    container: Path
    name: str
    size: int
    offset: int = 0

    def read(self, max_bytes: int) -> bytes:
        """Raises BadSample for whatever is wrong with this one file."""
        if self.size > max_bytes:
            raise BadSample(f"{self.size} bytes, more than the limit of {max_bytes}")
        try:
            if self.kind == "zip":
                with _open_zip(self.container).open(self.name) as member:
                    data = member.read(self.size + 1)
            elif self.kind == "tar":
                with self.container.open("rb") as file:
                    file.seek(self.offset)
                    data = file.read(self.size)
            else:
                path = self.container / self.name
                if not path.resolve().is_relative_to(self.container.resolve()):
                    raise BadSample("leads out of the folder by a symbolic link")
                if not stat.S_ISREG(path.stat().st_mode):
                    raise BadSample("is no plain file")
                with path.open("rb") as file:
                    data = file.read(self.size + 1)
        except (*_PACKING_ERRORS, RuntimeError) as error:  # RuntimeError: encrypted, or packed in a way unknown here
            raise BadSample(f"cannot be read ({error})") from error
        if len(data) != self.size:
            raise BadSample(f"{len(data)} bytes in place of {self.size}: the file was changed or cut off")
        return data


@dataclasses.dataclass(frozen=True)
class Container:
    """The files of a folder or archive by their names, in its order (folders: sorted).

    strange  name and reason of what was found and is no file of its own tree (folders only; archives are refused)
    """

    path: Path
    blobs: Mapping[str, Blob]
    strange: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def _by_last_part(self) -> dict[str, Blob | None]:
        found: dict[str, Blob | None] = {}
        for name, blob in self.blobs.items():
            last = PurePosixPath(name).name
            found[last] = None if last in found else blob
        return found

    def find(self, name: str) -> Blob | None:
        """The file of this name, or the only one of its last part if folders at the start of one of the two names are all
        that the other lacks."""
        blob = self.blobs.get(name) or self._by_last_part.get(PurePosixPath(name).name)
        return blob if blob and _end_alike(blob.name, name) else None


def open_container(path: Path, limits: Limits, scratch: Path | None) -> Container:
    """List a folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz. Raises DatasetError.

    A compressed tar has no members that can be read by themselves; it is unpacked to a hidden .tar below `scratch`,
    and refused without one.
    """
    if path.is_dir():
        return _folder(path, limits)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file or folder")
    try:
        with path.open("rb") as file:
            start = file.read(6)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return _zip(path, limits)
        opener = next((opener for magic, opener in _PACKERS.items() if start.startswith(magic)), None)
        if opener and scratch is None:
            raise DatasetError(f"{path}: a compressed tar; unpack it to a plain one")
        return _tar(path, _unpack(path, opener, limits, scratch) if opener and scratch else path, limits)
    except DatasetError:
        raise
    except _PACKING_ERRORS as error:
        raise DatasetError(f"{path}: cannot be read ({error}): not an archive, or cut off") from error


def _end_alike(one: str, other: str) -> bool:
    """Whether one name is the end of the other; cats/1.jpg and dogs/1.jpg are two files."""
    short, long = sorted((PurePosixPath(one).parts, PurePosixPath(other).parts), key=len)
    return long[len(long) - len(short) :] == short


def name_fault(name: str) -> str | None:
    """What is wrong with the name of a file in a container or in a list of files."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        return "has a name that leads out"
    return None


def _is_litter(name: str) -> bool:
    """What file managers, notebooks and systems leave behind."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part != ".." for part in parts) or not TOOLS.isdisjoint(parts)


def _folder(root: Path, limits: Limits) -> Container:
    blobs: dict[str, Blob] = {}
    strange: list[tuple[str, str]] = []
    for name in _walk(root):
        if _is_litter(name):
            continue
        path = os.path.join(root, name)
        try:
            status = os.lstat(path)
            is_link = stat.S_ISLNK(status.st_mode)
            status = os.stat(path) if is_link else status
        except OSError as error:
            strange.append((name, f"cannot be read ({error.strerror})"))
            continue
        if is_link and not Path(path).resolve().is_relative_to(root.resolve()):
            strange.append((name, "leads out of the folder by a symbolic link"))
        elif stat.S_ISDIR(status.st_mode):
            strange.append((name, "is a symbolic link to a folder, which is not followed"))
        elif not stat.S_ISREG(status.st_mode):
            strange.append((name, "is no plain file"))
        else:
            blobs[name] = Blob("folder", root, name, status.st_size)
        if len(blobs) > limits.files:
            raise DatasetError(f"{root}: more than {limits.files} files")
    return Container(root, blobs, tuple(strange))


def _walk(root: Path) -> Iterator[str]:
    """Names of files, and of links to folders, below `root`: folders and what they hold in sorted order."""

    def fail(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=fail):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        inside = os.path.relpath(folder, root)
        for name in sorted([*files, *links]):
            yield name if inside == "." else f"{inside}/{name}"


def _zip(path: Path, limits: Limits) -> Container:
    blobs: dict[str, Blob] = {}
    total = 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or _is_litter(info.filename):
                continue
            total += info.file_size
            mode = info.external_attr >> 16
            fault = "is a link or device" if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG) else None
            fault = fault or ("is encrypted" if info.flag_bits & 1 else None)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = fault or "is neither stored nor deflated"
            _refuse(path, info.filename, fault, info.file_size, total, blobs, limits)
            blobs[info.filename] = Blob("zip", path, info.filename, info.file_size)
    return Container(path, blobs)


def _tar(path: Path, plain: Path, limits: Limits) -> Container:
    """path: for messages; plain: the tar itself, or its unpacked copy."""
    blobs: dict[str, Blob] = {}
    total = 0
    with plain.open("rb") as file, tarfile.open(fileobj=cast(Any, _Headers(file)), mode="r:") as tar:
        while info := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            name = info.name.removeprefix("./")
            if info.isdir() or _is_litter(name):
                continue
            total += info.size
            fault = None if info.isreg() and not info.issparse() else "is a link or device"
            _refuse(path, name, fault, info.size, total, blobs, limits)
            blobs[name] = Blob("tar", plain, name, info.size, info.offset_data)
    return Container(path, blobs)


def _refuse(
    path: Path, name: str, fault: str | None, size: int, total: int, seen: Mapping[str, Blob], limits: Limits
) -> None:
    fault = fault or name_fault(name)
    if not fault and name in seen:
        fault = "comes twice"
    if not fault and size > limits.member:
        fault = f"has {size} bytes, the limit is {limits.member}"
    if not fault and total > limits.archive:
        fault = f"makes {total} bytes in all, the limit is {limits.archive} (--max-gib)"
    if not fault and len(seen) >= limits.files:
        fault = f"is one more than the limit of {limits.files} files"
    if fault:
        raise DatasetError(f"{path}: member {name!r} {fault}; refused, pack the archive again")


class _Headers:
    """A file of which only headers are read: names and attributes of absurd length are not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._read(size)


def _unpack(path: Path, opener: Callable[[Path], IO[bytes]], limits: Limits, scratch: Path) -> Path:
    plain = scratch / f".{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.tar.tmp"
    total = 0
    with opener(path) as source, plain.open("wb") as target:
        while block := source.read(_BLOCK):
            total += len(block)
            if total > limits.archive:
                raise DatasetError(f"{path}: unpacks to more than {limits.archive} bytes (--max-gib); refused")
            target.write(block)
    return plain


@functools.lru_cache(maxsize=4)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Kept open in every process: reading the list of a large zip takes longer than reading a file."""
    return zipfile.ZipFile(path)
