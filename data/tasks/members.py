"""The members of a sample by the names that tasks know, and what is said where one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.shards.errors import BadSample

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
VIDEO_KEYS = ("mp4", "avi", "webm", "mkv", "mov")
KNOWN_KEYS = (*IMAGE_KEYS, *VIDEO_KEYS, "txt", "json", "cls")


def member(sample: dict[str, Any], keys: Sequence[str]) -> bytes:
    """The first of these that the sample has. Raises BadSample."""
    for key in keys:
        if key in sample:
            return sample[key]
    names = ", ".join(keys)
    raise BadSample(
        f"no member {names}; {found(sample)}" if len(keys) == 1 else f"none of the members {names}; {found(sample)}"
    )


def found(sample: dict[str, Any]) -> str:
    """What there is in place of a member that was looked for: names cut at an unwanted dot are explained."""
    extensions = sorted(key for key in sample if not key.startswith("__"))
    text = f"found {', '.join(extensions) or 'nothing'}"
    known = dotted(sample, KNOWN_KEYS)
    if not known:
        return text
    name = str(sample.get("__key__", "KEY")).rpartition("/")[2]
    return (
        f"{text}. An extension begins at the first dot of a name: {name}.{known[0]} is member {known[0]!r} of sample {name!r}, "
        f"not a .{known[0].rpartition('.')[2]}; name the files without the other dots"
    )


def dotted(sample: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """Extensions with a dot in them that end in one of these."""
    return sorted(key for key in sample if not key.startswith("__") and "." in key and key.rpartition(".")[2] in keys)
