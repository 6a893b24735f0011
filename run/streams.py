"""Standard output and error: in a training nobody may be listening any more, and that is no reason to end.

A terminal that is gone, a closed pipe (`| head`), a full disk under a log: what is printed from then on goes nowhere. What a run
tells is in its folder as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any

from run.errors import OutputError


class Tolerant:
    """A stream whose writes never fail."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_printing() -> None:
    """From here on printing never fails, in any locale, and libraries' printing neither."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except (
            OSError
        ):  # started with it closed: the next file to be opened would get its number, and what C code prints
            os.open(os.devnull, os.O_RDWR)
            if number:
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Tolerant(stream))


def silence(stream: IO[str]) -> None:
    """What is written there from now on, and what still lies in its buffer, goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def print_result(line: str) -> None:
    """What the locale's encoding does not have is escaped. Raises OutputError: a result that nobody gets is none."""
    if sys.stdout is None:
        raise OutputError("standard output cannot be written: it is closed")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error
