"""Text and JSON of a sample. Input is untrusted: sizes are checked first, and whatever is wrong becomes BadSample."""

from __future__ import annotations

import json
from typing import Any

from data.shards.errors import BadSample
from data.text.words import has_word


def decode_text(data: bytes | str, max_bytes: int = 1 << 20) -> str:
    """UTF-8, with or without a byte order mark, to text without white space around it.

    Raises BadSample, also for a text in which nothing can be seen (`&nbsp;`).
    """
    if len(data) > max_bytes:
        raise BadSample(f"text of {len(data)} bytes, more than the limit of {max_bytes}")
    try:
        text = (data.decode("utf-8-sig") if isinstance(data, bytes) else data).strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"text is not valid UTF-8: {error}") from error
    if not text:
        raise BadSample("the text is empty")
    if not has_word(text):
        raise BadSample(f"the text {text[:20]!a} has no word")
    return text


def decode_json(data: bytes | str, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """A JSON object. Raises BadSample."""
    if len(data) > max_bytes:
        raise BadSample(f"JSON of {len(data)} bytes, more than the limit of {max_bytes}")
    try:
        content = json.loads(data, object_pairs_hook=_with_each_key_once)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), "a number or a truth value")
        raise BadSample(f"JSON: expected an object, found {kind}")
    return content


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(f"a key comes twice among {', '.join(key for key, _ in pairs)[:100]}")
    return content


def one_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
