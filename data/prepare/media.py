"""Images and clips: kept as they are if they can be decoded, reduced if asked for."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from data.decode.image import decode_image
from data.decode.text import one_line
from data.decode.video import decode_video
from data.prepare.containers import Blob
from data.prepare.reencode import reduce_video
from data.prepare.source import Context, Failure, Item, SplitJobs, split_of, take_val
from data.shards import BadSample

IMAGE_SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
VIDEO_SUFFIXES = {".mp4": "mp4", ".avi": "avi", ".webm": "webm", ".mkv": "mkv", ".mov": "mov"}
JPEG_QUALITY = 90

Medium = Literal["image", "video"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One image or clip, its further members and the texts in them.

    group  samples of one group stay in one split; empty: the name
    """

    name: str
    blob: Blob
    members: dict[str, Any]
    texts: tuple[str, ...] = ()
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Reduction:
    """resize: short side in pixels to which larger images and clips are reduced; fps: highest frame rate of clips."""

    resize: int | None = None
    fps: float | None = None


def media_splits(
    medium: Medium,
    entries: dict[str, list[Entry]],
    failures: dict[str, list[Failure]],
    reduction: Reduction,
    context: Context,
) -> dict[str, SplitJobs]:
    """The splits of any layout of images or clips. Raises DatasetError."""
    take_val(entries, failures, lambda entry: entry.group or entry.name, context)
    make = functools.partial(make_item, medium, reduction, context.limits.member)
    return {
        split: split_of(entries[split], make, lambda entry: entry.name, failures.get(split, ()), context)
        for split in entries
    }


def is_medium(name: str, medium: Medium) -> bool:
    return os.path.splitext(name)[1].lower() in (IMAGE_SUFFIXES if medium == "image" else VIDEO_SUFFIXES)


def make_item(medium: Medium, reduction: Reduction, max_bytes: int, entry: Entry) -> Item | Failure:
    """Read, check by decoding, reduce."""
    suffixes = IMAGE_SUFFIXES if medium == "image" else VIDEO_SUFFIXES
    extension = suffixes.get(os.path.splitext(entry.blob.name)[1].lower())
    if extension is None:
        return Failure(entry.name, f"no {medium}: use {', '.join(suffixes)}")
    try:
        data = entry.blob.read(max_bytes)
        if medium == "image":
            data, extension = checked_image(data, extension, reduction.resize)
        else:
            decode_video(data, num_frames=1)
            reduced = reduce_video(data, reduction.resize, reduction.fps)
            data, extension = (data, extension) if reduced is None else (reduced, "mp4")
    except BadSample as error:
        return Failure.of(entry.name, error)
    return Item(entry.name, {extension: data, **entry.members}, entry.texts)


def checked_image(data: bytes, extension: str, resize: int | None) -> tuple[bytes, str]:
    """The image and its extension, as they are or reduced to a JPEG. Raises BadSample."""
    pixels_HWC = decode_image(data)
    short = min(pixels_HWC.shape[:2])
    if resize is None or short <= resize:
        return data, extension
    height, width = (round(side * resize / short) for side in pixels_HWC.shape[:2])
    buffer = io.BytesIO()
    try:
        reduced = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BICUBIC)
        reduced.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    except Exception as error:  # a JPEG has at most 65,500 pixels a side, for one
        raise BadSample(f"image cannot be reduced to {width} x {height} pixels: {one_line(error)}") from error
    return buffer.getvalue(), "jpg"


def caption_members(texts: Sequence[str], **others: Any) -> dict[str, Any]:
    return {"json": {"captions": list(texts), **others}}
