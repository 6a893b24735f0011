"""What a user can cause when a run is exported or an exported folder is read."""

from __future__ import annotations


class ExportError(ValueError):
    """The run or folder cannot be exported or read; the message is one line with the place and the remedy."""
