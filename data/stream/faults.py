"""What of the data could not be used, for the ledger."""

from __future__ import annotations

import dataclasses

from data.shards import BadSample, BadShard
from data.stream.source import Source


@dataclasses.dataclass(frozen=True)
class Fault:
    """A sample that could not be used, or with sample=None all or the rest of a shard.

    shard: its name without credentials; sample: index in the shard; offset: in bytes, where it is known.
    """

    task: str
    shard: str
    sample: int | None
    offset: int | None
    reason: str


def shard_faults(sources: list[Source]) -> tuple[Fault, ...]:
    """What was wrong with whole shards when their samples were counted: cut off, or no shards at all."""
    return tuple(
        Fault(source.name, source.shards.name(shard), None, None, reason)
        for source in sources
        for shard, reason in source.shards.listed.faults.items()
    )


def fault_of(source: Source, shard: int, index: int, error: BadSample) -> Fault:
    """What goes to the ledger."""
    whole = isinstance(error, BadShard)
    offset = error.offset
    if offset is None and not whole:  # the sample was read, and its content is bad
        offset = int(source.shards.ranges(shard)[index, 0])
    return Fault(source.name, source.shards.name(shard), None if whole else index, offset, error.reason)
