"""Names of shards: what kind they are, what they expand to, and what of them may be shown."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator

import braceexpand

from data.transport.plain_text import NotText, text_of
from data.transport.reply import FetchError

MAX_SHARDS = 4_000_000
MAX_LISTS = 8
"""Lists within lists; more is taken for a circle."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(?=://)|(pipe|file)(?=:)")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_URL = re.compile(r"([A-Za-z][\w+.-]*://)(?:[^\s/]*@)?")
_QUERY = re.compile(r"\?[^\s'\"()<>]*=[^\s'\"()<>]*")


def scheme_of(url: str) -> str:
    """http, s3, pipe, ...; empty for a path of this machine, with file: or without."""
    match = _SCHEME.match(url)
    scheme = (match[1] or match[2]).lower() if match else ""
    return "" if scheme == "file" else scheme


def is_remote(url: str) -> bool:
    """Whether reading needs fetching."""
    return bool(scheme_of(url))


def local_path(url: str) -> str:
    """The path of a local name."""
    return url.removeprefix("file://") if url.startswith("file://") else url.removeprefix("file:")


def shown(url: str) -> str:
    """The name for messages and ledgers: without user, password and query; of a command, its program and a number."""
    if scheme_of(url) != "pipe":
        return masked(url)
    try:
        program = os.path.basename(shlex.split(url.removeprefix("pipe:"))[0])
    except (ValueError, IndexError):
        program = "?"
    return f"pipe:{program} #{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def command_of(url: str) -> list[str]:
    """The words of a pipe: name. Raises FetchError where they are none."""
    try:
        words = shlex.split(url.removeprefix("pipe:"))
    except ValueError as error:
        raise FetchError(f"{shown(url)}: not a command: {error}") from error
    if not words:
        raise FetchError(f"{shown(url)}: no command")
    return words


def masked(text: str) -> str:
    """A text with the credentials and queries of all URLs in it taken out."""
    return _QUERY.sub("?***", _URL.sub(lambda m: m[1] + ("***@" if m[0] != m[1] else ""), text))


def join(base: str, name: str) -> str:
    """A file below a folder or URL prefix; a query of the prefix stays at the end."""
    if not is_remote(base):
        return os.path.join(local_path(base), name)
    return sibling(base.rstrip("/") if "?" not in base else base.replace("/?", "?", 1), f"/{name}")


def sibling(url: str, suffix: str) -> str:
    """The file with a longer name beside this one; a query stays at the end."""
    prefix, sign, query = url.partition("?") if scheme_of(url) in ("http", "https") else (url, "", "")
    return f"{prefix}{suffix}{sign}{query}"


def folder_of(url: str) -> str:
    """Folder or URL prefix of a file."""
    if not is_remote(url):
        return os.path.dirname(local_path(url))
    return (url.partition("?")[0] if scheme_of(url) in ("http", "https") else url).rpartition("/")[0]


def expand(names: Iterable[str], read: Callable[[str], bytes], allow_pipe: bool = False) -> list[str]:
    """Every shard that the names mean, in their order. Raises FetchError.

    {000..012} and {a,b} expand everywhere, * ? [] match local files; an existing path is itself. A named file need not be there.
    @LIST is a file or URL with a name per line (# starts a comment), read by `read`; relative names in it are below its folder. A list
    may not hold commands, nor leave its folder by '..', nor, if it is remote, name local files.
    """
    found = list(itertools.islice(_expand(names, None, read, allow_pipe, MAX_LISTS), MAX_SHARDS + 1))
    if len(found) > MAX_SHARDS:
        raise FetchError(f"the names of shards expand to more than {MAX_SHARDS}")
    if not found:
        raise FetchError("the list of shards is empty")
    return found


def _expand(
    names: Iterable[str], base: str | None, read: Callable[[str], bytes], allow_pipe: bool, lists: int
) -> Iterator[str]:
    for name in names:
        if name.startswith("@"):
            url = _resolve(base, name[1:])
            if not lists:
                raise FetchError(f"@{shown(url)}: more than {MAX_LISTS} lists within lists: do they form a circle?")
            yield from _expand(_lines(url, read(url)), folder_of(url), read, allow_pipe, lists - 1)
            continue
        if scheme_of(name) == "pipe" and (base is not None or not allow_pipe):
            where = "a list may not hold commands" if base is not None else "commands need data.allow_pipe=true"
            raise FetchError(f"{shown(name)}: {where}")
        if scheme_of(name) == "pipe":
            command_of(name)
        is_there = not is_remote(whole := _resolve(base, name)) and os.path.lexists(local_path(whole))
        for single in [name] if is_there else expand_braces(name):
            url = _resolve(base, single)
            if is_remote(url):
                yield url
            else:
                yield from _local(local_path(url))


def _lines(url: str, content: bytes) -> list[str]:
    try:
        lines = [line.strip() for line in text_of(content, f"@{shown(url)}").splitlines()]
    except NotText as error:
        raise FetchError(str(error)) from error
    return [line for line in lines if line and not line.startswith("#")]


def _resolve(base: str | None, name: str) -> str:
    if base is None:
        return name
    if is_remote(name):
        return name
    path = local_path(name)
    if ".." in path.split("/"):
        raise FetchError(f"{name!r} in a list of shards at {shown(base)}: names in a list may not contain '..'")
    if os.path.isabs(path):
        if is_remote(base):
            raise FetchError(f"{name!r} in a list of shards at {shown(base)}: a remote list may not name local files")
        return path
    return join(base, path)


def literal(path: str) -> str:
    """The name that expands to this path of a local file, whatever signs are in it."""
    return re.sub(r"([\\{},])", r"\\\1", glob.escape(path))


def expand_braces(name: str) -> Iterator[str]:
    """What {000..012} and {a,b} in a name stand for. Raises FetchError."""
    count = 1
    for low, high in _RANGE.findall(name):
        count *= abs(int(high) - int(low)) + 1
    if count > MAX_SHARDS:
        raise FetchError(f"{shown(name)}: expands to {count} names, more than {MAX_SHARDS}")
    try:
        yield from braceexpand.braceexpand(name)
    except ValueError as error:
        raise FetchError(f"{shown(name)}: unbalanced braces") from error


def local_files(name: str) -> list[str]:
    """What a name with * ? [] means; ** is folders within folders. An existing path, and the existing folders that it begins with, are
    taken as they are written; a name without these signs is itself, whether the file is there or not."""
    if not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    folder, last = os.path.split(name)
    parts = [last]
    while folder and not os.path.isdir(folder):
        folder, last = os.path.split(folder)
        parts.insert(0, last)
    found = sorted(glob.glob(os.path.join(glob.escape(folder), *parts), recursive=True))
    return [path for path in found if not os.path.isdir(path)] if "**" in parts else found


def _local(path: str) -> list[str]:
    found = local_files(path)
    if not found:
        raise FetchError(f"{path}: no such shard")
    return found
