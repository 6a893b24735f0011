"""Two checkouts of this program train in turn on the same machine: how much faster the new one is than the old one.

    git worktree add ../old REVISION
    python -m benchmarks.revisions --old ../old --config configs/demo.yaml

Both begin the same training, each with its own configuration of that name and with the data below the working folder. One is stopped while
the other takes a stretch of steps, so what else the machine does hits both alike. Seconds of the processor are those of the trainer and
its data workers together, and of the trainer alone; a ratio above 1 says that the new one is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
LOOK_S = 0.01
FIGURES = ("trainer and workers", "trainer", "on the clock")
Seconds = tuple[float, float, float]
"""Of a stretch, in the order of FIGURES."""


class Training:
    """One checkout's `train.py`, stopped but while it takes a stretch."""

    def __init__(self, root: Path, config: str, folder: Path, options: list[str]) -> None:
        self._records, self._said = folder / "run" / "metrics.jsonl", folder / "said.txt"
        command = [sys.executable, root / "train.py", "--config", root / config, f"runs={folder}", "name=run", *options]
        with self._said.open("w", encoding="utf-8") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        self._send(signal.SIGSTOP)
        self._trainer = psutil.Process(self._process.pid)

    def stretch(self, number: int) -> Seconds:
        """Until `number` records are there. Raises RuntimeError where the training ends before."""
        before, start = self._processor(), time.perf_counter()
        self._send(signal.SIGCONT)
        while self._told() < number:
            if self._process.poll() is not None:
                raise RuntimeError(f"the training has ended: {self._said.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(LOOK_S)
        self._send(signal.SIGSTOP)
        clock = time.perf_counter() - start
        own, all_of_them = (after - then for after, then in zip(self._processor(), before, strict=True))
        return all_of_them, own, clock

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._send(signal.SIGKILL)
        self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _told(self) -> int:
        return self._records.read_text(encoding="utf-8").count('"samples_per_s"') if self._records.exists() else 0

    def _processor(self) -> tuple[float, float]:
        """Seconds since the start -> (of the trainer, of it and what it has started)."""
        each = [sum(one.cpu_times()[:2]) for one in (self._trainer, *self._trainer.children(recursive=True))]
        return each[0], sum(each)


@contextlib.contextmanager
def trainings(places: list[Path], config: str, options: list[str]) -> Iterator[list[Training]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:
        found = []
        for index, place in enumerate(places):
            own = Path(folder) / str(index)
            own.mkdir()
            found.append(Training(place, config, own, options))
            started.callback(found[-1].end)
        yield found


def ratios(old: Path, config: str, stretches: int, steps: int, overrides: list[str]) -> list[Seconds]:
    """Old over new, of each stretch but the first, in which both start."""
    options = [
        f"steps={(stretches + 2) * steps}", f"log_every={steps}", f"save_every={(stretches + 2) * steps}", "seed=1",
        "parallel.expert=1", "threads=1", "tracking.wandb=disabled", *overrides,
    ]  # fmt: skip
    found = []
    with trainings([old, ROOT], config, options) as (first, second):
        for number in range(1, stretches + 2):
            taken: dict[Training, Seconds] = {}
            for training in (first, second) if number % 2 else (second, first):
                taken[training] = training.stretch(number)
            olds, news = taken[first], taken[second]
            found.append((olds[0] / news[0], olds[1] / news[1], olds[2] / news[2]))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--config", default="configs/demo.yaml", help="below both roots (default: configs/demo.yaml)")
    parser.add_argument(
        "--stretches", type=int, default=10, help="that are counted; one more is for the start (default: 10)"
    )
    parser.add_argument("--steps", type=int, default=20, help="of a stretch (default: 20)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to both")
    arguments = parser.parse_args()
    old = arguments.old.resolve()
    found = ratios(old, arguments.config, arguments.stretches, arguments.steps, arguments.overrides)
    print(f"{arguments.config}, old / new, {len(found)} stretches of {arguments.steps} steps: median (range)")
    for name, values in zip(FIGURES, zip(*found, strict=True), strict=True):
        print(f"{name:<20} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
