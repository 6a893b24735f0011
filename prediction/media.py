"""The images and clips that a command line or a list names: files, folders, patterns and shards."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.config import DataConfig
from data.shards import BadSample, BadShard, DatasetError, ShardSet
from data.shards.lists import COUNTING_THREADS, MAX_LIST_BYTES
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS
from data.transport import Cache, FetchError, expand, is_remote, local_files, read_small, shown

MAX_BYTES = 256 << 20
CACHE_DIR, CACHE_GIB = DataConfig.cache_dir, DataConfig.cache_gib


@dataclasses.dataclass(frozen=True)
class Medium:
    """An encoded image or clip; fault: why it cannot be read, instead of its content. kind: its suffix, as a member of a shard. name: has
    numbers in place of bytes that are no UTF-8, as it goes into texts and tables."""

    name: str
    kind: str = ""
    content: bytes = b""
    fault: str = ""

    @property
    def is_clip(self) -> bool:
        return self.kind in VIDEO_KEYS


def shard_cache(folder: str | Path = CACHE_DIR) -> Cache:
    """Where remote shards are kept: by default with those of trainings."""
    return Cache(Path(os.path.expanduser(folder)), int(CACHE_GIB * (1 << 30)))


def media_of(places: Iterable[str], cache: Cache | None = None) -> Iterator[Medium]:
    """In the order given; of folders all files with the suffix of an image or a clip, by name. What is not there, or cannot be read, comes
    with its fault, so that the rest can be used. Shards may be URLs, or in @LIST, a file or URL with a name per line (data/transport)."""
    for place in places:
        path = os.path.expanduser(place)
        if is_remote(place) or (place.startswith("@") and not os.path.exists(path)):
            yield from _shards(place, cache or shard_cache())
        elif not place:
            yield Medium("''", fault="an empty name: is a variable of the shell empty?")
        elif found := [match for match in local_files(path) if os.path.lexists(match)]:
            for match in found:
                yield from _local(match)
        else:
            yield Medium(_name(place), fault="no such file, folder or pattern")


def _local(path: str) -> Iterator[Medium]:
    """Of something that is there; it may be a link to what is not."""
    if os.path.isdir(path):
        yield from _folder(path)
    elif path.endswith(".tar"):
        yield from _samples(path, _opened(path))
    else:
        yield _file(path)


def _folder(path: str) -> Iterator[Medium]:
    """All in it, also behind links, but of each folder once."""
    found, faults, seen = False, list[OSError](), set[tuple[int, int]]()
    for folder, folders, files in os.walk(path, onerror=faults.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _kind(name) and not name.startswith("."):
                found = True
                yield _file(os.path.join(folder, name))
    for error in faults:
        yield Medium(_name(str(error.filename)), fault=str(error.strerror))
    if not found and not faults:
        yield Medium(_name(path), fault=f"no image or clip in this folder ({', '.join((*IMAGE_KEYS, *VIDEO_KEYS))})")


def _file(path: str) -> Medium:
    kind, name = _kind(path), _name(path)
    if not kind:
        return Medium(name, fault=f"not named as an image or a clip ({', '.join((*IMAGE_KEYS, *VIDEO_KEYS))})")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return Medium(name, fault="no file with content: a pipe, device or socket")
        if status.st_size > MAX_BYTES:
            return Medium(name, fault=f"more than {MAX_BYTES} bytes")
        return Medium(name, kind, Path(path).read_bytes())
    except OSError as error:
        gone = f"a link to {_name(os.readlink(path))}, which is not there" if os.path.islink(path) else ""
        return Medium(name, fault=gone or str(error.strerror))


def _name(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _shards(place: str, cache: Cache) -> Iterator[Medium]:
    """Each is opened by itself, some ahead: one that cannot be had takes no other with it."""
    try:
        locations = expand([place], lambda url: read_small(url, MAX_LIST_BYTES))
    except (FetchError, OSError) as error:
        yield Medium(_name(shown(place)), fault=_name(getattr(error, "strerror", "") or str(error)))
        return
    with ThreadPoolExecutor(COUNTING_THREADS) as pool:
        opened = pool.map(lambda location: _opened(location, cache), locations)
        for location, shard in zip(locations, opened, strict=True):
            yield from _samples(location, shard)


def _opened(location: str, cache: Cache | None = None) -> ShardSet | str:
    """A shard, or why it cannot be had."""
    try:
        return ShardSet.from_urls([location], cache)
    except DatasetError as error:  # which may say, too, that all shards have to be counted
        return _name(str(error.__cause__ or error))


def _samples(location: str, shard: ShardSet | str) -> Iterator[Medium]:
    """Named by their shard and key."""
    path = _name(shown(location))
    if isinstance(shard, str):
        yield Medium(path, fault=shard)
        return
    for fault in shard.faults:
        yield Medium(path, fault=fault)
    for index in range(len(shard)):
        try:
            sample = shard.read(0, index)
        except BadShard as error:  # and so are all that follow in it
            yield Medium(path, fault=error.reason)
            break
        except BadSample as error:
            yield Medium(f"{path}:{index}", fault=error.reason)
            continue
        name = f"{path}:{_name(str(sample['__key__']))}"
        kind = next((key for key in (*IMAGE_KEYS, *VIDEO_KEYS) if key in sample), "")
        content = sample[kind] if kind else b""
        assert isinstance(content, bytes)
        yield Medium(name, kind, content, "" if kind else "no image or clip in this sample")


def _kind(name: str) -> str:
    suffix = name.rpartition(".")[2].lower()
    return suffix if "." in name and suffix in (*IMAGE_KEYS, *VIDEO_KEYS) else ""
