"""Is a Matroska or WebM file whole? FFmpeg plays one that was cut off as a shorter clip, without a word.

A file is nested elements: an identifier, a size, content (RFC 8794). Sizes say where the file must end; files that were written
while they were sent may leave those of the segment and of its clusters open, and then the innermost known ones tell.
"""

from __future__ import annotations

_HEADER, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675


def missing_bytes(data: bytes) -> int:
    """How much of the file is missing at the end, as far as its sizes tell; 0 for files of other kinds, too."""
    if int.from_bytes(data[:4], "big") != _HEADER:
        return 0
    position = 0
    while position < len(data):
        identifier, position = _number(data, position, keep_marker=True)
        size, position = _number(data, position, keep_marker=False)
        if position > len(data):
            return position - len(data)
        if size is None and identifier in (_SEGMENT, _CLUSTER):
            continue  # what is in it has sizes
        if size is None:  # open where no reader expects it
            return 0
        position += size
        if identifier == _SEGMENT:  # what follows is of no matter
            break
    return max(0, position - len(data))


def _number(data: bytes, position: int, keep_marker: bool) -> tuple[int | None, int]:
    """(a number of 1 to 8 bytes, which begins with a marker of its length; None: all ones, an open size. Where it ends)."""
    first = data[position] if position < len(data) else 0x80
    length = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + length], "big")
    ones = (1 << 7 * length) - 1
    if not keep_marker:
        value &= ones
    return None if not keep_marker and value == ones else value, position + length
