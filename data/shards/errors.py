"""What can be wrong with data: one sample, or a whole data set."""

from __future__ import annotations


class BadSample(Exception):
    """A sample that cannot be used. `reason` says where and why; the stream takes another sample instead.

    offset: of the sample in its shard, in bytes, where it is known.
    """

    def __init__(self, reason: str, offset: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.offset = reason, offset


class BadShard(BadSample):
    """A sample that cannot be used because its whole shard, or the rest of it, cannot. The reason is the same for all of them.

    may_pass: its store did not answer, and may do so later.
    """

    def __init__(self, reason: str, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


class DatasetError(ValueError):
    """A folder or list of shards that cannot be used: one line with the file, the fault and the remedy."""
