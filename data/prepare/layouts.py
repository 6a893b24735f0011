"""Archives of images or clips with classes or captions, as public data sets come."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from data.decode import decode_image
from data.prepare.archives import Limits, Member, member_names, members, records
from data.prepare.build import Failure, Item, Source
from data.shards import BadSample, DatasetError
from data.video import decode_video

IMAGE_SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
VIDEO_SUFFIXES = {".mp4": "mp4", ".avi": "avi", ".webm": "webm", ".mkv": "mkv", ".mov": "mov"}
JPEG_QUALITY = 90


def class_archive(
    archives: dict[str, Path],
    classes: tuple[str, ...] | None,
    display: dict[str, str],
    resize: int | None,
    limits: Limits,
) -> Source:
    """Members `CLASS/NAME.jpg` of an archive per split.

    classes  folder names in the order of their numbers; None = all that occur, sorted
    display  other names for classes in dataset.json, {folder: name}
    resize   short side in pixels to which larger images are reduced
    """
    if classes is None:
        names = [name for path in archives.values() for name in member_names(path, limits)]
        classes = tuple(sorted({folder for name in names if (folder := _folder(name))}))
    numbers = {name: number for number, name in enumerate(classes)}

    def items(path: Path) -> Iterator[Item | Failure]:
        for member in members(path, limits):
            folder = _folder(member.name)
            if folder not in numbers:
                yield Failure(member.name, f"not in the folder of a class ({', '.join(classes)[:80]})")
                continue
            yield _image(member, resize, {"cls": numbers[folder]})

    return Source("image_class", _displayed(classes, display), _bound(items, archives))


def caption_archive(archives: dict[str, Path], captions: dict[str, Path], resize: int | None, limits: Limits) -> Source:
    """An archive of images per split, and JSON lines {"image": member name, "captions": [texts]}."""

    def items(split: str) -> Iterator[Item | Failure]:
        wanted: dict[str, list[str]] = {}
        for record in records(captions[split], limits, {"image": str, "captions": list}):
            wanted[record["image"]] = [text for text in record["captions"] if isinstance(text, str) and text.strip()]
        for member in members(archives[split], limits):
            texts = wanted.pop(member.name, None)
            if not texts:
                yield Failure(member.name, f"no captions in {captions[split].name}")
                continue
            yield _image(member, resize, {"json": {"captions": texts}}, tuple(texts))
        for name in wanted:
            yield Failure(name, f"not in {archives[split].name}")

    return Source("image_caption", (), {split: functools.partial(items, split) for split in archives})


def clip_archive(archives: dict[str, Path], labels: dict[str, Path], display: dict[str, str], limits: Limits) -> Source:
    """An archive of clips per split, and JSON lines {"video": member name, "label": class}."""
    by_split = {
        split: {r["video"]: r["label"] for r in records(path, limits, {"video": str, "label": str})}
        for split, path in labels.items()
    }
    classes = tuple(sorted({label for wanted in by_split.values() for label in wanted.values()}))

    def items(split: str) -> Iterator[Item | Failure]:
        wanted = dict(by_split[split])
        for member in members(archives[split], limits):
            label = wanted.pop(member.name, None)
            extension = VIDEO_SUFFIXES.get(PurePosixPath(member.name).suffix.lower())
            if label is None or extension is None:
                yield Failure(member.name, "no video" if label else f"no label in {labels[split].name}")
                continue
            try:
                decode_video(member.data, num_frames=1)
            except BadSample as error:
                yield Failure(member.name, error.reason)
                continue
            yield Item(member.name, {extension: member.data, "cls": classes.index(label)})
        for name in wanted:
            yield Failure(name, f"not in {archives[split].name}")

    splits: dict[str, Any] = {split: functools.partial(items, split) for split in archives}
    return Source("video_class", _displayed(classes, display), splits)


def read_classes(path: Path) -> tuple[str, ...]:
    """A JSON list of names. Raises DatasetError."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {error}; expected a JSON list of class names") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: expected a JSON list of class names, found {str(names)[:80]}")
    return tuple(names)


def _image(member: Member, resize: int | None, others: dict[str, Any], texts: tuple[str, ...] = ()) -> Item | Failure:
    """The image as it is if it can be decoded, reduced if asked for."""
    extension = IMAGE_SUFFIXES.get(PurePosixPath(member.name).suffix.lower())
    if extension is None:
        return Failure(member.name, f"no image: use {', '.join(IMAGE_SUFFIXES)}")
    try:
        pixels_HWC = decode_image(member.data)
    except BadSample as error:
        return Failure(member.name, error.reason)
    data = member.data
    short = min(pixels_HWC.shape[:2])
    if resize is not None and short > resize:
        height, width = (round(side * resize / short) for side in pixels_HWC.shape[:2])
        buffer = io.BytesIO()
        reduced = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BICUBIC)
        reduced.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        data, extension = buffer.getvalue(), "jpg"
    return Item(member.name, {extension: data, **others}, texts)


def _folder(name: str) -> str | None:
    """The class of CLASS/NAME; folders above are ignored, as archives often have one of their own."""
    parts = PurePosixPath(name).parts
    return parts[-2] if len(parts) > 1 else None


def _displayed(classes: tuple[str, ...], display: dict[str, str]) -> tuple[str, ...]:
    unknown = [name for name in display if name not in classes]
    if unknown:
        raise DatasetError(f"no class {unknown[0]!r} to rename; the classes are {', '.join(classes)[:200]}")
    return tuple(display.get(name, name) for name in classes)


def _bound(items: Callable[[Path], Iterator[Item | Failure]], archives: dict[str, Path]) -> dict[str, Any]:
    return {split: functools.partial(items, path) for split, path in archives.items()}
