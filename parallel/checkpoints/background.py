"""All saves of a run, written at once or beside the training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from parallel.checkpoints.fragments import CheckpointError, Fragment
from parallel.checkpoints.manifest import Base, RankPart
from parallel.checkpoints.saving import Published, begin, owned, publish, save, write


class Saver:
    """With `background`, a save copies what this rank owns to host memory and a thread writes it; training waits for the copy
    alone. The thread issues no collectives: the ranks publish together, later.

    The loop calls `publish` at a step where `is_writing` is false on all ranks, and before it ends. `save` publishes what an earlier
    one left, so at most one snapshot is held. Until a save is published the one before it is the newest.
    """

    def __init__(
        self,
        root: Path,
        keep: int = 2,
        background: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        base: Base | None = None,
    ) -> None:
        """tell: is given a line on every rank for each save. base: what is not written, since it is there."""
        self.root, self.keep, self._tell, self._base = root, keep, tell, base
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._pending: tuple[int, dict[str, Any], int, Future[RankPart]] | None = None
        self._waited_s = 0.0

    @property
    def is_writing(self) -> bool:
        return self._pending is not None and not self._pending[3].done()

    def save(self, step: int, fragments: Iterable[Fragment], state: dict[str, Any], spared: int = -1) -> None:
        """Collective: all ranks call it at the same step, between two steps. spared: an older step that stays.

        Raises CheckpointError as `publish` does.
        """
        if self._pool is None:
            start = time.perf_counter()
            done = save(self.root, step, fragments, state, self.keep, self._base, spared)
            self._report(done, time.perf_counter() - start)
            return
        self.publish()
        start = time.perf_counter()
        begin(self.root, step)
        snapshot = owned(fragments, self._base).snapshot()
        self._pending = step, state, spared, self._pool.submit(write, self.root, step, snapshot)
        self._waited_s = time.perf_counter() - start

    def publish(self) -> None:
        """Collective: publish the save that is written beside the training, if there is one, and wait for the writing where need be.

        Raises CheckpointError on all ranks if one of them could not write.
        """
        if self._pending is None:
            return
        (step, state, spared, writing), self._pending = self._pending, None
        start = time.perf_counter()
        part: RankPart | CheckpointError
        try:
            part = writing.result()
        except CheckpointError as error:
            part = error
        except Exception as error:  # it must not be lost, and the other ranks must not wait
            part = CheckpointError(f"the thread that writes failed: {type(error).__name__}: {error}")
        done = publish(self.root, step, part, state, self.keep, self._base, spared)
        self._report(done, self._waited_s + time.perf_counter() - start)

    def _report(self, done: Published, waited_s: float) -> None:
        size = f"{done.bytes / 2**20:,.1f} MiB"
        self._tell(f"saved {done.folder.name}: {size}, training waited {waited_s:.2f} s")
