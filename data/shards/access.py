"""The ways to a shard's bytes. Which one a set of shards takes is decided once, when it is opened."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.shards.files import open_plain
from data.shards.lists import check_and_index
from data.transport import Cache, is_remote, local_path


class LocalAccess:
    """All shards are local files."""

    def open(self, location: str, expected_bytes: int | None) -> BinaryIO:
        """A context manager. Raises OSError."""
        return open_plain(Path(local_path(location)))

    def path(self, location: str) -> Path:
        """Where the shard is once it was opened."""
        return Path(local_path(location))

    def fetch(self, location: str, expected_bytes: int | None) -> None:
        """Nothing has to come."""


@dataclasses.dataclass(frozen=True)
class CachedAccess:
    """Remote shards are read from the cache; local files may be among them."""

    cache: Cache

    @contextlib.contextmanager
    def open(self, location: str, expected_bytes: int | None) -> Iterator[BinaryIO]:
        """The shard, fetched if need be. Raises FetchError and OSError."""
        if not is_remote(location):
            with LocalAccess().open(location, expected_bytes) as file:
                yield file
            return
        with self.cache.open(location, check_and_index, expected_bytes) as file:
            yield file

    def path(self, location: str) -> Path:
        return self.cache.path(location) if is_remote(location) else LocalAccess().path(location)

    def fetch(self, location: str, expected_bytes: int | None) -> None:
        """Have it in the cache, unless another process is about to. Raises FetchError."""
        if is_remote(location) and not self.cache.has(location):
            self.cache.fetch(location, check_and_index, expected_bytes, wait=False)
