"""From a URL to a file: attempts, pauses, continuation and limits, whatever the way."""

from __future__ import annotations

import dataclasses
import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from data.transport import http, pipe
from data.transport import store as remote
from data.transport.reply import ChangedError, FetchError, FetchOptions, Reply, TransientError
from data.transport.urls import is_remote, local_path, scheme_of, shown

PROGRESS_BYTES = 64 << 10
"""An attempt that brings so much further does not count as failed."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the version that a part of has come."""

    validator: str | None = None
    total: int | None = None


def way_of(url: str) -> Callable[[str, int, str | None, FetchOptions], AbstractContextManager[Reply]]:
    return {"http": http.open_at, "https": http.open_at, "pipe": pipe.open_at}.get(scheme_of(url), remote.open_at)


def check_url(url: str) -> None:
    """Raises FetchError where no way leads to such URLs."""
    if scheme_of(url) not in ("", "http", "https", "pipe"):
        remote.check_protocol(url)


def download(
    url: str,
    file: BinaryIO,
    limit_bytes: int,
    options: FetchOptions,
    known: Known | None = None,
    note: Callable[[Known, int], None] = lambda known, size: None,
) -> None:
    """Fill `file`, going on from what it holds of the version `known`. Raises FetchError.

    note(known, size) is called before bytes are written, with the length that the file will have; it may raise FetchError.
    """
    known = known or Known()

    def remember(version: Known, size: int) -> None:
        nonlocal known
        known = version
        note(version, size)

    failures, best = 0, file.seek(0, io.SEEK_END) if known.validator else 0
    while True:
        try:
            _attempt(url, file, limit_bytes, options, known, remember)
            return
        except TransientError as error:
            if isinstance(error, ChangedError):
                remember(Known(), 0)
                file.truncate(0)
            size = file.seek(0, io.SEEK_END)
            failures = 1 if size >= best + PROGRESS_BYTES else failures + 1
            best = max(best, size)
            if failures >= options.attempts:
                raise FetchError(f"{error} (given up after {failures} attempts)") from error
            pause = min(options.max_backoff_s, options.backoff_s * 2 ** (failures - 1))
            time.sleep(max(error.wait_s, pause * random.uniform(0.5, 1.0)))


def _attempt(
    url: str,
    file: BinaryIO,
    limit_bytes: int,
    options: FetchOptions,
    known: Known,
    note: Callable[[Known, int], None],
) -> None:
    offset = file.seek(0, io.SEEK_END) if known.validator else 0
    if known.validator and known.total is not None and offset == known.total <= limit_bytes:
        return  # whole: a server would answer that there is nothing more
    with way_of(url)(url, offset, known.validator, options) as reply:
        if reply.total is not None and reply.total > limit_bytes:
            raise FetchError(f"{shown(url)}: {reply.total} bytes, more than the limit of {limit_bytes}")
        if reply.start and reply.total != known.total:
            raise ChangedError(f"{shown(url)}: its length has changed to {reply.total}")
        version, size = Known(reply.validator, reply.total), reply.start
        file.truncate(size)
        file.seek(size)
        note(version, size)
        for chunk in _paced(url, reply, options):
            size += len(chunk)
            if size > (limit_bytes if reply.total is None else reply.total):
                raise FetchError(f"{shown(url)}: sends more than {size - len(chunk)} bytes, which is too much")
            note(version, size)
            try:
                file.write(chunk)
            except OSError as error:
                raise FetchError(f"{shown(url)}: cannot be stored: {error}") from error
        if reply.total is not None and size != reply.total:
            raise TransientError(f"{shown(url)}: ends after {size} of {reply.total} bytes")
    file.flush()


def _paced(url: str, reply: Reply, options: FetchOptions) -> Iterator[bytes]:
    """The chunks, as long as enough come in time. Raises TransientError for whatever ends them early."""
    start, came, size = time.monotonic(), 0, reply.start
    while True:
        try:
            chunk = next(reply.chunks, b"")
        except FetchError:
            raise
        except Exception as error:  # each library has its own
            raise TransientError(f"{shown(url)}: ends after {size} bytes: {type(error).__name__}") from error
        if not chunk:
            return
        yield chunk
        came, size, passed = came + len(chunk), size + len(chunk), time.monotonic() - start
        if passed > options.stall_s:
            if came < options.min_bytes_per_s * passed:
                raise TransientError(f"{shown(url)}: {came} bytes in {passed:.0f} s, too slow")
            start, came = time.monotonic(), 0


def read_small(url: str, limit_bytes: int, options: FetchOptions | None = None) -> bytes:
    """A list or description, local or remote, but not a command's output. Raises FetchError; for a local file OSError."""
    if scheme_of(url) == "pipe":
        raise FetchError(f"{shown(url)}: only shards may come from commands")
    if not is_remote(url):
        with open(local_path(url), "rb") as local:
            content = local.read(limit_bytes + 1)
        if len(content) > limit_bytes:
            raise FetchError(f"{url}: more than {limit_bytes} bytes")
        return content
    file = io.BytesIO()
    download(url, file, limit_bytes, options or FetchOptions(attempts=6))
    return file.getvalue()
