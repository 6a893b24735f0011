"""Remote shards are fetched ahead of the training stream."""

from __future__ import annotations

import functools

from data.stream.source import Source
from data.transport import Ahead


class FetchingAhead:
    """Has the shards of each remote task's window and of the next one fetched, as the stream goes on."""

    def __init__(self, sources: list[Source], consumed: tuple[int, ...]) -> None:
        self._sources = sources
        self._positions = {task: consumed[task] for task, source in enumerate(sources) if source.shards.is_remote}
        self._ahead = Ahead()
        self._want()

    def reached(self, task: int, position: int) -> None:
        if task in self._positions:
            window = self._sources[task].order.window
            entered = self._positions[task] // window != position // window
            self._positions[task] = position
            if entered:
                self._want()

    def _want(self) -> None:
        jobs = []
        for task, position in self._positions.items():
            shards, order = self._sources[task].shards, self._sources[task].order
            jobs += [functools.partial(shards.fetch, shard) for shard in order.shards_near(position)]
        self._ahead.want(jobs)

    def close(self) -> None:
        self._ahead.close()
