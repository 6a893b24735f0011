"""One sample decoded as training does it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data.decode.image import decode_image
from data.decode.text import decode_json, decode_text
from data.decode.video import decode_video
from data.shards import DatasetInfo
from data.shards.errors import BadSample
from data.tasks.base import captions_of, label_of
from data.tasks.members import IMAGE_KEYS, VIDEO_KEYS, dotted, found, member
from data.tasks.text_classification import score_of
from data.tasks.vqa import question_of

FRAMES = 8
"""Frames taken of a clip, spread over its length."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What is in a sample.

    source       the bytes that a task takes as input: of the image, the clip or the text
    frames_THWC  uint8 pixels, an image as one frame; None for text
    texts        captions, the question, or the text
    label        number of the class
    """

    source: bytes
    frames_THWC: np.ndarray | None
    texts: tuple[str, ...]
    label: int | None

    @property
    def is_clip(self) -> bool:
        return self.frames_THWC is not None and len(self.frames_THWC) > 1


def decode(sample: dict[str, Any], info: DatasetInfo | None, frames: int = FRAMES) -> Decoded:
    """Decode what the data set's kind promises; without `info`, every member of a known kind. Raises BadSample."""
    modality, _, target = info.kind.partition("_") if info else _guess(sample)
    pixels = None
    if modality == "text":
        source = member(sample, ("txt",))
        texts: list[str] = [decode_text(source)]
    elif modality == "image":
        source, texts = member(sample, IMAGE_KEYS), []
        pixels = decode_image(source)[None]
    else:
        source, texts = member(sample, VIDEO_KEYS), []
        pixels = decode_video(source, frames)
    if target == "caption":
        texts = captions_of(sample)
    if target == "question":
        texts = [question_of(sample)[0]]
    # A question without a class is for evaluation alone.
    has_label = target == "class" or (target == "question" and "cls" in sample)
    label = label_of(sample, info) if info and has_label else None
    if modality == "text" and label is not None:
        score_of(sample, label)
    if info is None:
        _check_members(sample)
    return Decoded(source, pixels, tuple(texts), label)


def _guess(sample: dict[str, Any]) -> tuple[str, str, str]:
    """(modality, "_", target) of a sample of other makers, as a kind is partitioned. Raises BadSample."""
    target = "caption" if "txt" in sample else ""
    for modality, keys in (("image", IMAGE_KEYS), ("video", VIDEO_KEYS), ("text", ("txt",))):
        if any(key in sample for key in keys):
            # Of text alone, a picture may have been meant as well; of a picture, its text or class.
            others = (*IMAGE_KEYS, *VIDEO_KEYS) if modality == "text" else () if target else ("txt",)
            hidden = dotted(sample, (*others, *(() if "cls" in sample else ("cls",))))
            if hidden:
                raise BadSample(f"member {hidden[0]} is not read; {found(sample)}")
            return modality, "_", "" if modality == "text" else target
    raise BadSample(f"no image, clip or text among the members; {found(sample)}")


def _check_members(sample: dict[str, Any]) -> None:
    """What other makers' samples may hold besides."""
    if "json" in sample:
        decode_json(sample["json"])
    if "cls" in sample:
        try:
            number = int(sample["cls"])
        except ValueError as error:
            raise BadSample(f"member cls: {error}") from error
        if number < 0:
            raise BadSample(f"member cls: class {number}")
