"""A URL as a place for files: whatever fsspec knows, with attempts, pauses and errors of one line.

Time limits of a single request are those of the protocol's package (s3fs: 5 s for a connection, 15 s without a byte).
"""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from data.transport import FetchError, FetchOptions, check_url, join, local_path, scheme_of, shown
from data.transport.store import REFUSED
from data.transport.urls import masked
from run.errors import ConfigError

T = TypeVar("T")
CHUNK = 4 << 20
PART_BYTES, MAX_PARTS = 16 << 20, 9_000
"""Of an object that is sent in parts: stores take 10,000 at most."""
MAX_OBJECTS = 1_000_000
NO_FOLDERS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "obs", "cos", "memory")
"""A file there needs no folder first; asking for one would make a bucket."""


class StoreError(Exception):
    """A store does not do what is asked of it, or holds something damaged. One line without credentials."""


class Place:
    """url: of one run. Raises ConfigError where it cannot be such a place."""

    def __init__(self, url: str, options: FetchOptions | None = None) -> None:
        """options: attempts, pauses and patience."""
        self.url, self.options = url.rstrip("/") or url, options or FetchOptions(attempts=4)
        if scheme_of(url) in ("http", "https", "pipe") or not url:
            raise ConfigError(
                f"{shown(url) or 'the empty URL'} is no store that one can write to: name s3://bucket/folder or such"
            )
        if shown(url) != url:
            raise ConfigError(
                f"{shown(url)}: a URL here has no user, password or query, as every process of the machine can read it: give credentials "
                "by the environment or the files of the protocol's package"
            )
        try:
            check_url(url)
            self._store, self._root = self._open()
        except FetchError as error:
            raise ConfigError(f"{error}" + (" (pip install -e '.[s3]')" if scheme_of(url) == "s3" else "")) from error
        except Exception as error:  # every store has its own
            raise ConfigError(self._line(error)) from error

    def _open(self) -> tuple[Any, str]:
        import fsspec

        scheme = scheme_of(self.url)
        url = self.url if scheme else str(Path(local_path(self.url)).absolute())
        # Attempts are ours: botocore's would multiply with them.
        of_s3 = {"config_kwargs": {"retries": {"max_attempts": 1}}} if scheme in ("s3", "s3a") else {}
        store, root = fsspec.core.url_to_fs(
            url, skip_instance_cache=scheme != "memory", use_listings_cache=False, **of_s3
        )
        return store, root.rstrip("/")

    def url_of(self, name: str) -> str:
        return join(self.url, name)

    def find(self, folder: str = "") -> dict[str, int]:
        """Bytes of all files below a folder of the place, by name from the place on; {} where there is none."""
        at = f"{self._root}/{folder}".rstrip("/")
        found: dict[str, dict[str, Any]] = self._asked(lambda: self._store.find(at, detail=True), missing={})
        if len(found) > MAX_OBJECTS:
            raise StoreError(f"{shown(self.url_of(folder))} holds {len(found):,} files: it is not the place of one run")
        below = {
            path[len(self._root) + 1 :]: int(entry.get("size") or 0)
            for path, entry in found.items()
            if path.startswith(f"{self._root}/") and entry.get("type") == "file"
        }
        return {name: size for name, size in below.items() if name and not name.endswith("/")}

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file; None where there is none. Raises StoreError above the limit."""
        content = self.head(name, limit_bytes + 1)
        if content is not None and len(content) > limit_bytes:
            raise StoreError(f"{shown(self.url_of(name))} has more than {limit_bytes:,} bytes")
        return content

    def head(self, name: str, count: int) -> bytes | None:
        """The first bytes of a file, `count` at most; None where there is none."""

        def read() -> bytes:
            with self._store.open(self._path(name), "rb", block_size=min(CHUNK, count), cache_type="none") as file:
                return file.read(count)

        return self._asked(read, missing=None)

    def write(self, name: str, content: bytes) -> None:
        """A small file, in place of what was there."""

        def write() -> None:
            self._make_folder(name)
            self._store.pipe_file(self._path(name), content)

        self._asked(write)

    def send(self, name: str, path: Path, size: int) -> str:
        """The first `size` bytes of a local file, in place of what was there. -> their SHA-256. Raises OSError of the local file,
        StoreError of the store."""
        part = max(PART_BYTES, -(-size // MAX_PARTS))

        def send() -> str:
            digest, left = hashlib.sha256(), size
            source.seek(0)
            self._make_folder(name)
            with self._store.open(self._path(name), "wb", block_size=part) as target:
                while left and (chunk := _read(source, min(CHUNK, left))):
                    target.write(chunk)
                    digest.update(chunk)
                    left -= len(chunk)
            return digest.hexdigest()

        with path.open("rb") as source:
            return self._asked(send)

    def fetch(self, name: str, file: BinaryIO, limit_bytes: int) -> None:
        """Fill a local file, going on from what it holds, up to the limit. Raises OSError of the local file, StoreError of the
        store, at the latest after so many attempts without progress."""

        def fetch() -> None:
            at = file.seek(0, io.SEEK_END)
            with self._store.open(self._path(name), "rb", block_size=PART_BYTES, cache_type="none") as source:
                source.seek(min(at, source.size or 0))
                while at < limit_bytes and (chunk := source.read(min(PART_BYTES, limit_bytes - at))):
                    _write(file, chunk)
                    at += len(chunk)

        while True:
            before = file.seek(0, io.SEEK_END)
            try:
                self._asked(fetch)
                return
            except StoreError:
                if file.seek(0, io.SEEK_END) == before:
                    raise

    def remove(self, names: Iterable[str]) -> None:
        """What is there of them."""
        for name in names:
            self._asked(lambda name=name: self._store.rm_file(self._path(name)), missing=None)  # type: ignore[misc]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_folder(self, name: str) -> None:
        if scheme_of(self.url) not in NO_FOLDERS:
            self._store.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _asked(self, action: Callable[[], T], **missing: T) -> T:
        """The action's answer; `missing=` in place of one where there is no such file. Raises StoreError after all attempts, at once for
        what asking again does not mend."""
        for attempt in range(self.options.attempts):
            try:
                return action()
            except LocalFileError as error:
                raise error.reason from error
            except FileNotFoundError as error:
                if missing:
                    return missing["missing"]
                raise StoreError(self._line(error)) from error
            except Exception as error:  # every store has its own
                is_last = attempt + 1 == self.options.attempts
                if is_last or isinstance(error, PermissionError) or type(error).__name__ in REFUSED:
                    tries = f" (given up after {attempt + 1} attempts)" if attempt else ""
                    raise StoreError(self._line(error) + tries) from error
                pause = min(self.options.max_backoff_s, self.options.backoff_s * 2**attempt)
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("at least one attempt")

    def _line(self, error: Exception) -> str:
        return f"{shown(self.url)}: " + masked(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


class LocalFileError(Exception):
    """An OSError of the file that is sent: the store is not asked again for it."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise LocalFileError(error) from error


def _read(source: Any, count: int) -> bytes:
    try:
        return source.read(count)
    except OSError as error:
        raise LocalFileError(error) from error
