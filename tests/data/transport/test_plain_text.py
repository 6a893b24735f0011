"""Byte order marks, and bytes that are no text."""

from __future__ import annotations

import pytest

from data.transport import NotText, TextReader, text_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_that_say_what_they_are(encoding):
    text = "a café\r\n\N{GRINNING FACE}\n"
    assert text_of(text.encode(encoding), "a.txt") == text
    # In pieces that cut characters.
    reader, content = TextReader("a.txt"), text.encode(encoding)
    pieces = [content[:4], *(content[at : at + 1] for at in range(4, len(content)))]
    assert "".join([*map(reader.read, pieces), reader.read(b"", final=True)]) == text


def test_utf16_of_the_other_order():
    assert text_of(b"\xfe\xff\0a", "a.txt") == "a"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (
            b"one\ncaf\xe9 au lait\n",
            "line 2, byte 7 (0xe9) is not UTF-8: save the file as UTF-8, from Latin-1 by `iconv",
        ),
        (b"\xef\xbb\xbfcaf\xe9 ", "line 1, byte 6 (0xe9) is not UTF-8"),
        (b"caf\xc3", "line 1, byte 3 (0xc3) is not UTF-8"),
        (b"\xff\xfea\0b", "line 1, byte 4 (0x62) is not UTF-16-LE: save the file as UTF-8"),
    ],
)
def test_the_first_byte_that_is_no_text_is_named(content, place):
    with pytest.raises(NotText) as whole:
        text_of(content, "a.txt")
    assert str(whole.value).startswith(f"a.txt: {place}")
    with pytest.raises(NotText) as parts:
        reader = TextReader("a.txt")
        for at in range(0, len(content), 4):
            reader.read(content[at : at + 4])
        reader.read(b"", final=True)
    assert str(parts.value) == str(whole.value)
