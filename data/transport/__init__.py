"""Where shards come from: HTTP(S), whatever fsspec knows, commands; and the local cache that they are read from.

    urls      names: braces, @file lists, what may be shown of them
    http, remote, pipe    one way to the bytes each: open_at(url, offset) -> Reply
    fetch     attempts, back-off, continuation, limits: the same for all ways
    plain_text    bytes to text: byte order marks, and what is no text
    cache     whole shards on local disk, shared by the processes of a machine
    ahead     a thread that fetches what will be read next

Order needs any sample of a window at once, so a remote shard is fetched whole and then read like a local one. Knows nothing of
what is in a shard.
"""

from data.transport.ahead import Ahead
from data.transport.cache import Cache
from data.transport.fetch import check_url, read_small
from data.transport.plain_text import NotText, TextReader, text_of
from data.transport.reply import FetchError, FetchOptions, TransientError, may_pass
from data.transport.urls import (
    expand,
    expand_braces,
    is_remote,
    join,
    literal,
    local_files,
    local_path,
    scheme_of,
    shown,
    sibling,
)

__all__ = [
    "Ahead",
    "Cache",
    "FetchError",
    "FetchOptions",
    "NotText",
    "TextReader",
    "TransientError",
    "check_url",
    "expand",
    "expand_braces",
    "is_remote",
    "join",
    "literal",
    "local_files",
    "local_path",
    "may_pass",
    "read_small",
    "scheme_of",
    "shown",
    "sibling",
    "text_of",
]
