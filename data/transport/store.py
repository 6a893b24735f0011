"""Stores that fsspec knows: s3://, gs://, az://, hf://, sftp://, memory:// and more, each by its own package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from data.transport.reply import FetchError, FetchOptions, Reply, TransientError
from data.transport.urls import masked, scheme_of, shown

CHUNK = 4 << 20
REFUSED = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "InvalidRegionError",
    "ParamValidationError",
)
"""botocore's errors that stay as they are, however often one asks."""


def check_protocol(url: str) -> None:
    """Raises FetchError, with the package to install, if fsspec cannot open such URLs here."""
    import fsspec

    if "::" in url:
        raise FetchError(f"{shown(url)}: chains of protocols (::) are not supported")
    if scheme_of(url) == "local":
        raise FetchError(f"{shown(url)}: name local files by their paths")
    try:
        fsspec.get_filesystem_class(scheme_of(url))
    except ImportError as error:
        raise FetchError(f"{shown(url)}: {scheme_of(url)}:// needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise FetchError(f"{shown(url)}: unknown protocol {scheme_of(url)}://") from error


@contextlib.contextmanager
def open_at(url: str, offset: int, validator: str | None, options: FetchOptions) -> Iterator[Reply]:
    """As http.open_at. Time limits are those of the protocol's package."""
    import fsspec

    check_protocol(url)
    try:
        store, path = fsspec.core.url_to_fs(
            url, skip_instance_cache=scheme_of(url) != "memory", use_listings_cache=False
        )
        size, version = int(store.size(path)), str(store.ukey(path))
        start = offset if version == validator else 0
        with store.open(path, "rb", block_size=CHUNK) as file:
            file.seek(start)
            yield Reply(start, size, version, iter(lambda: file.read(CHUNK), b""))
    except FetchError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError, TypeError) as error:
        raise FetchError(f"{shown(url)}: {_reason(error)}") from error
    except Exception as error:  # every store has its own
        if type(error).__name__ in REFUSED:
            raise FetchError(f"{shown(url)}: {_reason(error)}") from error
        raise TransientError(f"{shown(url)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return masked(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
