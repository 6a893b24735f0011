"""The list of samples and shards that could not be used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from data.stream.faults import Fault
from parallel.checkpoints import write_atomically
from run.meter import Record


class TooManyFaultsError(RuntimeError):
    """More unreadable samples than the run allows."""


class FaultLedger:
    """Every unusable sample and shard once, in `ledger_rank_<n>.jsonl`; the run stops above a share of samples.

    A line has the fields of Fault: task, shard, sample and offset (null for a whole shard), reason.
    """

    GRACE_SAMPLES = 1000

    def __init__(self, folder: Path, rank: int, max_fraction: float) -> None:
        self.path = folder / f"ledger_rank_{rank:05d}.jsonl"
        self.max_fraction = max_fraction
        self._samples, self._faults = 0, 0
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a crash has cut off the last line
            text = text[: text.rfind("\n") + 1]
            write_atomically(self.path, text)
        self._known = {_place_of(json.loads(line)) for line in text.splitlines()}

    def add(self, num_samples: int, faults: tuple[Fault, ...]) -> None:
        """Raises TooManyFaultsError, which names the ledger. Faults count as many as samples were replaced for them."""
        self._samples += num_samples
        self._faults += len(faults) if num_samples else 0
        for fault in faults:
            entry = dataclasses.asdict(fault)
            if _place_of(entry) not in self._known:
                self._known.add(_place_of(entry))
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
        if self._samples >= self.GRACE_SAMPLES and self._faults > self.max_fraction * self._samples:
            raise TooManyFaultsError(
                f"{self._faults} of {self._samples} samples are unreadable, more than data.max_bad_fraction="
                f"{self.max_fraction}; the list is {self.path}"
            )


def _place_of(entry: Record) -> tuple[Any, ...]:
    return entry["task"], entry.get("shard"), entry.get("sample")
