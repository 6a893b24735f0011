"""The images, clips and texts that a command line or a list names: files, folders, patterns and shards."""

from __future__ import annotations

import dataclasses
import io
import mimetypes
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from data.config import DataConfig
from data.shards import BadSample, BadShard, DatasetError, ShardSet
from data.shards.lists import COUNTING_THREADS, MAX_LIST_BYTES
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS
from data.transport import Cache, FetchError, NotText, expand, is_remote, local_files, read_small, shown, text_of

MAX_BYTES = 256 << 20
CACHE_DIR, CACHE_GIB = DataConfig.cache_dir, DataConfig.cache_gib
OTHER_IMAGES = {"bmp": "BMP", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF"}
"""Formats of Pillow by suffix: of files that are no members of shards. They become PNG; of several pictures in a file the first counts."""
OTHER_CLIPS = ("m4v", "mpg", "mpeg", "flv", "ogv", "wmv")
"""Suffixes of containers that the decoder opens by their content."""
MODES_OF_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
MAX_PIXELS = 64_000_000
SHARD, TEXT = "tar", "txt"
NAMED = 3
"""So many of the files that are left out."""


@dataclasses.dataclass(frozen=True)
class Medium:
    """An encoded image or clip, or a text; fault: why it cannot be read, instead of its content. kind: its suffix, as a member of a shard.
    name: has numbers in place of bytes that are no UTF-8, as it goes into texts and tables. is_note: the fault is that a folder holds what
    is nothing to read, and nothing is missing."""

    name: str
    kind: str = ""
    content: bytes = b""
    fault: str = ""
    is_note: bool = False

    @property
    def is_clip(self) -> bool:
        return self.kind in VIDEO_KEYS

    @property
    def is_text(self) -> bool:
        return self.kind == TEXT

    @property
    def modality(self) -> str:
        """image, video or text, as kinds of data sets begin."""
        return "text" if self.is_text else "video" if self.is_clip else "image"


def shard_cache(folder: str | Path = CACHE_DIR) -> Cache:
    """Where remote shards are kept: by default with those of trainings."""
    return Cache(Path(os.path.expanduser(folder)), int(CACHE_GIB * (1 << 30)))


def texts_of(texts: Iterable[str]) -> Iterator[Medium]:
    """Texts by themselves, each named by what it says."""
    for text in texts:
        yield Medium(text, TEXT, text.encode())


def media_of(places: Iterable[str], cache: Cache | None = None, texts: bool = False) -> Iterator[Medium]:
    """In the order given; of folders all images, clips and shards, by name. What is not there, or cannot be read, comes with its fault, so
    that the rest can be used; so does what a folder has besides. texts: files named .txt are texts, one a line, and so are samples of
    shards without image or clip. Shards may be URLs, or in @LIST, a file or URL with a name per line (data/transport)."""
    for place in places:
        path = os.path.expanduser(place)
        if is_remote(place) or (place.startswith("@") and not os.path.exists(path)):
            yield from _shards(place, cache or shard_cache(), texts)
        elif not place:
            yield Medium("''", fault="an empty name: is a variable of the shell empty?")
        elif found := [match for match in local_files(path) if os.path.lexists(match)]:
            for match in found:
                yield from _local(match, texts)
        else:
            yield Medium(_name(place), fault="no such file, folder or pattern")


def _local(path: str, texts: bool) -> Iterator[Medium]:
    """Of something that is there; it may be a link to what is not."""
    if os.path.isdir(path):
        yield from _folder(path, texts)
    elif _suffix(path) == SHARD:
        yield from _samples(path, _opened(path), texts)
    elif texts and _suffix(path) == TEXT:
        yield from _lines(path)
    else:
        yield _file(path)


def _folder(path: str, texts: bool) -> Iterator[Medium]:
    """All in it, also behind links, but of each folder once."""
    found, faults, seen, others = False, list[OSError](), set[tuple[int, int]](), list[str]()
    for folder, folders, files in os.walk(path, onerror=faults.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            place = os.path.join(folder, name)
            if _is_medium(name) or (_suffix(name) == SHARD and os.path.isfile(place)):
                found = True
                yield from _local(place, texts)
            elif not name.endswith(f".{SHARD}.index.json"):
                others.append(os.path.relpath(place, path))
    for error in faults:
        yield Medium(_name(str(error.filename)), fault=str(error.strerror))
    if not found and not faults:
        yield Medium(_name(path), fault=f"no image, clip or shard in this folder ({_suffixes()})")
    if others:
        more = ", ..." if len(others) > NAMED else ""
        what = f"no image, clip or shard: {', '.join(map(_name, others[:NAMED]))}{more}"
        yield Medium(_name(path), fault=f"left out of this folder, {len(others):,} files that are {what}", is_note=True)


def _lines(path: str) -> Iterator[Medium]:
    """Texts of a file, but for empty ones, named by their line."""
    file = _file(path, texts=True)
    if file.fault:
        yield file
        return
    try:
        lines = text_of(file.content, file.name).splitlines()
    except NotText as error:
        yield Medium(file.name, fault=str(error))
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Medium(f"{file.name}:{number}", TEXT, line.strip().encode())


def _file(path: str, texts: bool = False) -> Medium:
    kind, name = _suffix(path), _name(path)
    if kind not in (*IMAGE_KEYS, *VIDEO_KEYS, *OTHER_IMAGES, *OTHER_CLIPS) and not (texts and kind == TEXT):
        return Medium(name, fault=f"not named as an image or a clip that can be read ({_suffixes()})")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return Medium(name, fault="no file with content: a pipe, device or socket")
        if status.st_size > MAX_BYTES:
            return Medium(name, fault=f"more than {MAX_BYTES} bytes")
        content = Path(path).read_bytes()
    except OSError as error:
        gone = f"a link to {_name(os.readlink(path))}, which is not there" if os.path.islink(path) else ""
        return Medium(name, fault=gone or str(error.strerror))
    if kind in OTHER_IMAGES:
        return _as_png(name, content, OTHER_IMAGES[kind])
    return Medium(name, VIDEO_KEYS[0] if kind in OTHER_CLIPS else kind, content)


def _as_png(name: str, content: bytes, form: str) -> Medium:
    """What samples may hold, of the first picture."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=(form,)) as image:
            if image.width * image.height > MAX_PIXELS:
                return Medium(name, fault=f"image of {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            buffer = io.BytesIO()
            (image if image.mode in MODES_OF_PNG else image.convert("RGB")).save(buffer, "PNG")
    except Exception as error:  # Pillow's plugins raise nearly every built-in type
        return Medium(name, fault=f"no {form} that can be read ({type(error).__name__})")
    return Medium(name, "png", buffer.getvalue())


def _name(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _shards(place: str, cache: Cache, texts: bool) -> Iterator[Medium]:
    """Each is opened by itself, some ahead: one that cannot be had takes no other with it."""
    try:
        locations = expand([place], lambda url: read_small(url, MAX_LIST_BYTES))
    except (FetchError, OSError) as error:
        yield Medium(_name(shown(place)), fault=_name(getattr(error, "strerror", "") or str(error)))
        return
    with ThreadPoolExecutor(COUNTING_THREADS) as pool:
        opened = pool.map(lambda location: _opened(location, cache), locations)
        for location, shard in zip(locations, opened, strict=True):
            yield from _samples(location, shard, texts)


def _opened(location: str, cache: Cache | None = None) -> ShardSet | str:
    """A shard, or why it cannot be had."""
    try:
        return ShardSet.from_urls([location], cache)
    except DatasetError as error:  # which may say, too, that all shards have to be counted
        return _name(str(error.__cause__ or error))


def _samples(location: str, shard: ShardSet | str, texts: bool) -> Iterator[Medium]:
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
        wanted = (*IMAGE_KEYS, *VIDEO_KEYS, *((TEXT,) if texts else ()))
        kind = next((key for key in wanted if key in sample), "")
        content = sample[kind] if kind else b""
        assert isinstance(content, bytes)
        yield Medium(
            name, kind, content, "" if kind else f"no image{', clip or text' if texts else ' or clip'} in this sample"
        )


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _suffixes() -> str:
    return ", ".join((*IMAGE_KEYS, *OTHER_IMAGES, *VIDEO_KEYS, *OTHER_CLIPS))


def _is_medium(name: str) -> bool:
    """By its name an image or a clip, also one that is not read here: that has to be told."""
    kind = (mimetypes.guess_type(f"x.{_suffix(name)}")[0] or "").partition("/")[0]
    return _suffix(name) in (*OTHER_IMAGES, *OTHER_CLIPS, *IMAGE_KEYS, *VIDEO_KEYS) or kind in ("image", "video")
