"""Text as people's programs save it: UTF-8, with a byte order mark or without, or UTF-16 with one. All lists and tables are read here."""

from __future__ import annotations

import codecs

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # begins like the next one
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class NotText(ValueError):
    """One line with the file, the place of the first byte that is no text, and the remedy."""


class TextReader:
    """Bytes of one file, given in pieces of which the first has the whole byte order mark, to text without the byte order mark."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._encoding = ""
        self._decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes, self._lines = 0, 0

    def read(self, piece: bytes | bytearray, final: bool = False) -> str:
        """Raises NotText."""
        if not self._encoding:
            mark, self._encoding = next(
                ((mark, name) for mark, name in MARKS.items() if piece.startswith(mark)), (b"", "utf-8")
            )
            self._decoder = codecs.getincrementaldecoder(self._encoding)()
            piece, self._bytes = piece[len(mark) :], len(mark)
        self._bytes += len(piece)
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._encoding, "replace").count("\n")
            offset = self._bytes - len(error.object) + error.start
            remedy = "save the file as UTF-8"
            if self._encoding == "utf-8":
                remedy += ", from Latin-1 by `iconv -f latin1 -t utf-8 OLD > NEW`"
            raise NotText(
                f"{self.place}: line {self._lines + before + 1}, byte {offset} (0x{error.object[error.start]:02x}) is not "
                f"{self._encoding.upper()}: {remedy}"
            ) from error
        self._lines += text.count("\n")
        return text


def text_of(content: bytes | bytearray, place: str) -> str:
    """The text of a whole file. Raises NotText."""
    return TextReader(place).read(content, final=True)
