"""Text and JSON of a sample: what is read, and what is refused with which words."""

from __future__ import annotations

import codecs

import pytest

from data.decode.text import decode_json, decode_text
from data.shards.errors import BadSample


@pytest.mark.parametrize("content", [b"a dog", codecs.BOM_UTF8 + b"a dog", b" a dog\r\n", "a dog"])
def test_text(content):
    assert decode_text(content) == "a dog"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"caf\xe9", "not valid UTF-8"),
        ("a dog".encode("utf-16"), "not valid UTF-8"),
        (codecs.BOM_UTF8, "the text is empty"),
        (b"x" * ((1 << 20) + 1), "1048577 bytes, more than the limit of 1048576"),
    ],
)
def test_no_text(content, reason):
    with pytest.raises(BadSample, match=reason):
        decode_text(content)


@pytest.mark.parametrize(
    "content", [b'{"a": ["b"]}', codecs.BOM_UTF8 + b'{"a": ["b"]}', '{"a": ["b"]}'.encode("utf-16")]
)
def test_json(content):
    assert decode_json(content) == {"a": ["b"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'["a"]', "found a list"),
        (b'"a"', "found a string"),
        (b"null", "found null"),
        (b"1", "found a number"),
        (b'{"captions": ["a"], "captions": ["b"]}', "a key comes twice among captions, captions"),
        (b'{"a": ', "JSONDecodeError"),
        (b"[" * 100_000, "RecursionError"),
    ],
)
def test_no_json_object(content, reason):
    with pytest.raises(BadSample, match=reason):
        decode_json(content)
