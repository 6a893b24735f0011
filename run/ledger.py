"""The list of samples and shards that could not be used, and the limit of how many that may be."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.stream.faults import Fault, Loss, too_many
from parallel.checkpoints import write_atomically
from parallel.health.claim import FolderError
from run.metrics.meter import Record


class LedgerError(FolderError):
    """The ledger of one rank cannot be written."""

    of_one_rank = True


class FaultLedger:
    """Every unusable sample and shard once, in `ledger_rank_<n>.jsonl`; the run stops where a task's share of them is too large.

    A line has the fields of Fault: task, shard, sample and offset (null for a whole shard), reason. Counts are of this rank since the run
    was started.
    """

    def __init__(self, folder: Path, rank: int, max_fraction: float, losses: Mapping[str, Loss]) -> None:
        """losses: of each task, what was missing at the start; the first rank writes it down."""
        self.path = folder / f"ledger_rank_{rank:05d}.jsonl"
        self.max_fraction, self.losses = max_fraction, losses
        self._samples: collections.Counter[str] = collections.Counter()
        self._replaced: collections.Counter[str] = collections.Counter()
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a crash has cut off the last line
            text = text[: text.rfind("\n") + 1]
            write_atomically(self.path, text)
        self._known = set(_places_of(text))
        if rank == 0:
            self._write([fault for loss in losses.values() for fault in loss.faults])

    def add(self, task: str, num_samples: int, faults: tuple[Fault, ...]) -> None:
        """Of one micro-batch: the samples that it has, and the faults of those in whose place they are. Raises TooManyFaultsError."""
        self._write(faults)
        self._samples[task] += num_samples + len(faults)
        self._replaced[task] += len(faults)
        if not faults:
            return
        missing = self.losses[task].samples / self.losses[task].remaining  # per sample that came
        bad, total = self._replaced[task] + missing * self._samples[task], self._samples[task] * (1 + missing)
        if bad > _allowed(self.max_fraction * total):
            also = " and what was missing at the start" if missing else ""
            raise too_many(
                f"task {task}: {self._replaced[task]} of {self._samples[task]} samples were bad{also}; more than "
                f"data.max_bad_fraction={self.max_fraction:g} allows; the last: {faults[-1].reason}; all are listed in {self.path}",
                faults[-1],
            )

    def _write(self, faults: list[Fault] | tuple[Fault, ...]) -> None:
        for fault in faults:
            entry = dataclasses.asdict(fault)
            if _place_of(entry) not in self._known:
                self._known.add(_place_of(entry))
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry) + "\n")
                except OSError as error:
                    raise LedgerError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _allowed(expected: float) -> float:
    """So many bad samples are no sign of more than were expected: chance makes three times the root more, and a few among the first."""
    return expected + 3 * math.sqrt(expected) + 3 if expected else 0.0


def _places_of(text: str) -> Iterator[tuple[Any, ...]]:
    """Of the lines that can be read: a machine that lost power may leave others."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield _place_of(json.loads(line))


def _place_of(entry: Record) -> tuple[Any, ...]:
    return entry["task"], entry.get("shard"), entry.get("sample")
