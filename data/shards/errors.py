"""What can be wrong with data: one sample, or a whole data set."""

from __future__ import annotations


class BadSample(Exception):
    """A sample that cannot be used. `reason` says where and why; the stream takes another sample instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DatasetError(ValueError):
    """A folder or list of shards that cannot be used: one line with the file, the fault and the remedy."""
