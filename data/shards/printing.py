"""Lines about files whose names may be anything."""

from __future__ import annotations

import os
import sys


def print_any_name() -> None:
    """From here on numbers are printed in place of bytes and letters that the terminal's encoding does not have.

    Where standard error is closed, what goes there goes nowhere: bars and `print` would fail, or take standard output."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the program ends
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
