"""HTTP and HTTPS, with ranges."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import requests
import urllib3

from data.transport.reply import ChangedError, FetchError, FetchOptions, Reply, TransientError
from data.transport.urls import masked, shown

CHUNK = 1 << 20
MAX_REDIRECTS = 5
MAX_WAIT_S = 60.0
RETRIED = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@contextlib.contextmanager
def open_at(url: str, offset: int, validator: str | None, options: FetchOptions) -> Iterator[Reply]:
    """The bytes from `offset` on if the server still has the version `validator`, else all from 0.

    Credentials in the URL, the environment's proxies and ~/.netrc are used. Redirects lead to http and https alone.
    """
    headers = {"Accept-Encoding": "identity"}
    if offset and validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        with requests.Session() as session, _get(session, url, headers, options) as response:
            yield _reply(url, response, offset if "Range" in headers else 0, validator)
    except ValueError as error:  # no URL; first, as those of requests are OSErrors, too
        raise FetchError(f"{shown(url)}: {_reason(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"{shown(url)}: {_reason(error)}") from error


def _get(session: requests.Session, url: str, headers: dict[str, str], options: FetchOptions) -> requests.Response:
    """By hand, since requests reads the bodies of redirects without limit."""
    timeouts = (options.connect_s, options.stall_s)
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        response = session.get(target, headers=headers, stream=True, timeout=timeouts, allow_redirects=False)
        if not response.is_redirect:
            return response
        response.close()
        target = urljoin(target, response.headers["location"])
        if not target.startswith(("http://", "https://")):
            raise FetchError(f"{shown(url)}: redirected to {shown(target)}, which is neither http nor https")
    raise FetchError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")


def _reply(url: str, response: requests.Response, offset: int, validator: str | None) -> Reply:
    status, headers = response.status_code, response.headers
    if status in RETRIED:
        wait = headers.get("Retry-After", "")
        raise TransientError(f"{shown(url)}: HTTP {status}", min(MAX_WAIT_S, float(wait)) if wait.isdigit() else 0.0)
    if status == 416 and offset:  # it has become shorter
        raise ChangedError(f"{shown(url)}: HTTP 416, the file has changed")
    if status not in (200, 206):
        raise FetchError(f"{shown(url)}: HTTP {status}")
    start, length = 0, headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    version = _validator(headers)
    if status == 206:
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset or version != validator:
            raise ChangedError(f"{shown(url)}: the server sent another part than the one asked for")
        start, total = offset, int(match[2])
    return Reply(start, total, version, _chunks(response))


def _validator(headers: requests.structures.CaseInsensitiveDict[str]) -> str | None:
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    while chunk := response.raw.read1(CHUNK, decode_content=False):
        yield chunk


def _reason(error: Exception) -> str:
    """The innermost cause: the outer ones repeat the URL and the addresses of objects."""
    while error.__cause__ or error.__context__:
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            break
        error = inner
    return masked(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
