"""What measuring costs a training: statistics of experts and the meter, as shares of forward and backward pass.

    python -m data.synthetic --out data_demo
    python -m benchmarks.measuring                                            the demo, with its attribute router
    python -m benchmarks.measuring model.experts.router=token                 routing of tokens

`train.py` itself runs in this process, on one thread, with clocks around the calls. Seconds are the processor's, so waiting for a busy core
does not count.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import train
from model import encoder
from model.moe import gates, report, router
from parallel.engine import Engine
from run.metrics.meter import Meter

PASS, USE, ENTROPY, ADDING, RECORD = "rest of the pass", "use of experts", "entropy of gates", "adding up", "a record"
CALLS: tuple[tuple[str, Any, str], ...] = (
    (PASS, Engine, "__call__"),
    (PASS, Engine, "backward"),
    (USE, encoder, "summed_up"),
    (USE, gates, "_reports"),
    (ENTROPY, report, "entropy"),
    (ENTROPY, router, "entropy"),
    (ADDING, Meter, "add"),
    (RECORD, Meter, "record"),
)
"""What is timed: its name in the table, and where the training looks it up."""
WARM = 5
"""Steps that are not counted. A record is made every so many steps."""


class Clock:
    """Seconds of the processor in calls, by name, without those of timed calls inside them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.calls: dict[str, int] = collections.Counter()
        self._inside: list[str] = []
        self._last = 0.0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **options: Any) -> Any:
            self._charge()
            self._inside.append(name)
            try:
                return call(*arguments, **options)
            finally:
                self._charge()
                self._inside.pop()
                self.calls[name] += 1
                if name == RECORD and arguments[1] == WARM:  # Meter.record(self, step, ...)
                    self.seconds.clear()
                    self.calls.clear()

        return timed_call

    def _charge(self) -> None:
        """What has passed since the last look goes to the innermost call."""
        now = time.process_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._last
        self._last = now


def measured(config: str, steps: int, overrides: list[str]) -> Clock:
    """Of `steps` steps after WARM. Raises SystemExit where the training fails."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        for name, place, attribute in CALLS:
            patches.enter_context(patch.object(place, attribute, clock.timed(name, getattr(place, attribute))))
        options = [
            f"runs={folder}", f"steps={WARM + steps}", f"log_every={WARM}", "optimizer.warmup_steps=0",
            "parallel.expert=1", "threads=1", "data.workers=0", "tracking.wandb=disabled", *overrides,
        ]  # fmt: skip
        if code := train.main(["--config", config, *options]):
            sys.exit(code)
    return clock


def table(clock: Clock) -> str:
    of_pass = sum(clock.seconds[name] for name in (PASS, USE, ENTROPY))
    lines = [f"forward and backward: {1e3 * of_pass / clock.calls[ADDING]:.1f} ms of the processor for a micro-batch"]
    for name in (USE, ENTROPY, ADDING, RECORD):
        share, per_call = clock.seconds[name] / of_pass, clock.seconds[name] / max(clock.calls[name], 1)
        lines.append(f"{name:<16} {share:7.2%} of it, {1e6 * per_call:6.0f} us a call")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml", help="of the run (default: configs/demo.yaml)")
    parser.add_argument("--steps", type=int, default=30, help="how many are timed (default: 30)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train.py")
    arguments = parser.parse_args()
    print(table(measured(arguments.config, arguments.steps, arguments.overrides)))


if __name__ == "__main__":
    main()
