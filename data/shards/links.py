"""Members of a tar that are no files: hard links inside the shard are read, all others are named with what avoids them."""

from __future__ import annotations

import collections
import dataclasses
import os
import tarfile
from typing import BinaryIO

_SHARDS = 4
_NO_FILES = {
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
}


def is_no_file(header: tarfile.TarInfo) -> bool:
    """Whether this member stands for content that is not in it."""
    return header.issym() or header.type in _NO_FILES


def why_not(header: tarfile.TarInfo) -> str:
    """The reason for a member that is no file, and the remedy."""
    if header.issym():
        return f"member {header.name!r} is a symbolic link to {header.linkname!r}: pack with tar -h (--dereference)"
    return f"member {header.name!r} is {_NO_FILES[header.type]}: pack regular files alone"


def not_here(header: tarfile.TarInfo) -> str:
    """The reason for a hard link whose file is not in the shard."""
    return (
        f"member {header.name!r} is a hard link to {header.linkname!r}, which does not stand before it in this shard: "
        "pack with tar --hard-dereference"
    )


def files_of(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Name of each file of a tar -> (where its content starts, bytes). Raises OSError; of a damaged tar, those before the damage."""
    found: dict[str, tuple[int, int]] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            for member in tar:
                if member.issparse():
                    continue
                if member.isreg():
                    found[plain(member.name)] = member.offset_data, member.size
                elif member.islnk() and plain(member.linkname) in found:
                    found[plain(member.name)] = found[plain(member.linkname)]
    except (tarfile.TarError, ValueError, KeyError, OverflowError):
        pass
    return found


def plain(name: str) -> str:
    """As links name members: ./a.jpg and a.jpg are one."""
    return os.path.normpath(name)


@dataclasses.dataclass
class LinkTargets:
    """The files of the shards that had hard links last, made when the first of them is met; copies start empty."""

    _shards: collections.OrderedDict[int, dict[str, tuple[int, int]]] = dataclasses.field(
        default_factory=collections.OrderedDict
    )

    def __reduce__(self) -> tuple:
        return LinkTargets, ()

    def of(self, shard: int, file: BinaryIO) -> dict[str, tuple[int, int]]:
        """Raises OSError."""
        if shard not in self._shards:
            self._shards[shard] = files_of(file)
            if len(self._shards) > _SHARDS:
                self._shards.popitem(last=False)
        return self._shards[shard]
