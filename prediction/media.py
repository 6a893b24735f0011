"""The images and clips that a command line or a list names: files, folders, patterns and shards."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.config import DataConfig
from data.shards import BadSample, BadShard, DatasetError, ShardSet
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS
from data.transport import Cache, is_remote, shown

MAX_BYTES = 256 << 20
CACHE_DIR, CACHE_GIB = DataConfig.cache_dir, DataConfig.cache_gib


@dataclasses.dataclass(frozen=True)
class Medium:
    """An encoded image or clip; fault: why it cannot be read, instead of its content. kind: its suffix, as a member of a shard."""

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
        path = Path(os.path.expanduser(place))
        if is_remote(place) or (place.startswith("@") and not path.exists()):
            yield from _shards(place, cache or shard_cache())
        elif path.is_dir():
            yield from _folder(path)
        elif path.suffix == ".tar" and path.exists():
            yield from _shards(str(path))
        elif path.exists():
            yield _file(path)
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            if matches:
                yield from media_of(matches, cache)
            else:
                yield Medium(place, fault="no such file, folder or pattern")


def _folder(path: Path) -> Iterator[Medium]:
    found = False
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if _kind(name) and not name.startswith("."):
                found = True
                yield _file(Path(folder, name))
    if not found:
        yield Medium(str(path), fault=f"no image or clip in this folder ({', '.join((*IMAGE_KEYS, *VIDEO_KEYS))})")


def _file(path: Path) -> Medium:
    kind = _kind(path.name)
    if not kind:
        return Medium(str(path), fault=f"not named as an image or a clip ({', '.join((*IMAGE_KEYS, *VIDEO_KEYS))})")
    try:
        if path.stat().st_size > MAX_BYTES:
            return Medium(str(path), fault=f"more than {MAX_BYTES} bytes")
        return Medium(str(path), kind, path.read_bytes())
    except OSError as error:
        return Medium(str(path), fault=str(error.strerror))


def _shards(place: str, cache: Cache | None = None) -> Iterator[Medium]:
    """Samples are named by their shard and key."""
    try:
        shards = ShardSet.from_urls([place], cache)
    except DatasetError as error:
        yield Medium(shown(place), fault=str(error))
        return
    for fault in shards.faults:
        yield Medium(shown(place), fault=fault)
    for shard, size in enumerate(shards.sizes):
        path = shown(shards.location(shard))
        for index in range(size):
            try:
                sample = shards.read(shard, index)
            except BadShard as error:  # and so are all that follow in it
                yield Medium(path, fault=error.reason)
                break
            except BadSample as error:
                yield Medium(f"{path}:{index}", fault=error.reason)
                continue
            name = f"{path}:{sample['__key__']!s}"
            kind = next((key for key in (*IMAGE_KEYS, *VIDEO_KEYS) if key in sample), "")
            content = sample[kind] if kind else b""
            assert isinstance(content, bytes)
            yield Medium(name, kind, content, "" if kind else "no image or clip in this sample")


def _kind(name: str) -> str:
    suffix = name.rpartition(".")[2].lower()
    return suffix if "." in name and suffix in (*IMAGE_KEYS, *VIDEO_KEYS) else ""
