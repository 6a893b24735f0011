"""Lines about files whose names may be anything."""

from __future__ import annotations

import sys


def print_any_name() -> None:
    """From here on numbers are printed in place of bytes and letters that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
