"""A close look at some steps: what the processor and the device did, operator by operator, written by torch.profiler.

profile/trace_rank_00000.json.gz        for ui.perfetto.dev or chrome://tracing; phases of the loop are ranges in it
        operators_rank_00000.json       where the time went: operators and collectives, the longest first
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from parallel.checkpoints import write_atomically

COLLECTIVES = ("c10d::", "gloo:", "nccl:", "ncclDevKernel", "ncclKernel")
"""How names of collectives begin: of the call, of the library's work, of its kernels."""
PREFIX = "phase "


class Profile:
    """A listener of `Phases`: it begins with the first micro-batch of the first step, and ends when another step begins after the last."""

    def __init__(
        self, folder: Path, rank: int, device: str, steps: tuple[int, ...], tell: Callable[[str], object] = print
    ) -> None:
        """tell: gets a line with the place of the files."""
        self.folder, self.rank, self.device, self.tell = folder, rank, device, tell
        self.first, self.last = steps
        self._profiler: Any = None
        self._open = contextlib.ExitStack()
        self._begin = 0.0

    def __call__(self, phase: str, step: int | None) -> None:
        if self._profiler is None:
            if step is None or step < self.first or self.first < 0:
                return
            if step > self.first:
                self.tell(f"no profile of {self._steps()}: the run goes on from step {step - 1}")
                self.first = -1
                return
            self._start()
        self._open.close()
        if phase == "end" or (step is not None and step > self.last):
            self._write()
            return
        self._open.enter_context(record_function(PREFIX + phase))

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device != "cpu":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()
        self._begin = time.perf_counter()

    def _write(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._begin
        self._profiler.stop()
        table = {"steps": [self.first, self.last], "seconds": round(seconds, 6)}
        table |= operators(self._profiler.key_averages(), on_device=self.device != "cpu")
        trace = self.folder / f"trace_rank_{self.rank:05d}.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(trace))
            write_atomically(self.folder / f"operators_rank_{self.rank:05d}.json", json.dumps(table, indent=1) + "\n")
            self.tell(f"profile of {self._steps()} in {self.folder}: open {trace.name} at https://ui.perfetto.dev")
        except OSError as error:  # no reason to end a run
            self.tell(f"no profile of {self._steps()}: {self.folder}: {error.strerror}")
        self.first, self._profiler = -1, None  # there is one in a run

    def _steps(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"


def operators(averages: Iterable[Any], on_device: bool) -> dict[str, list[dict[str, Any]]]:
    """Of torch.profiler's averages. seconds: an operator's own, without those that it calls, on the device where there is one; of a
    collective until it returns. share: of the seconds of all operators."""
    found: dict[str, list[dict[str, Any]]] = {"operators": [], "collectives": []}
    kept = [average for average in averages if not average.key.startswith((PREFIX, "ProfilerStep"))]
    own = {id(a): a.self_device_time_total if on_device else a.self_cpu_time_total for a in kept}
    whole = sum(own.values())
    for average in kept:
        is_collective = average.key.startswith(COLLECTIVES)
        microseconds = own[id(average)]
        if is_collective:
            microseconds = average.device_time_total if on_device else average.cpu_time_total
        if microseconds > 0:
            found["collectives" if is_collective else "operators"].append(
                {
                    "name": average.key,
                    "calls": average.count,
                    "seconds": round(microseconds / 1e6, 6),
                    "share": round(own[id(average)] / whole, 4),
                }
            )
    return {kind: sorted(rows, key=lambda row: -row["seconds"]) for kind, rows in found.items()}
