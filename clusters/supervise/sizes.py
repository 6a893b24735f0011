"""How many ranks a configuration fits, by train.py's own checks."""

from __future__ import annotations

import subprocess

from run.config import RunConfig, check_layout
from run.errors import ConfigError


def most_that_fit(run: RunConfig, at_most: int, at_least: int = 1) -> int:
    """Raises ConfigError where no number from `at_least` to `at_most` fits, for the reason that holds for `at_most`."""
    reason: ConfigError | None = None
    for ranks in range(at_most, at_least - 1, -1):
        try:
            check_layout(run, ranks)
        except ConfigError as error:
            reason = reason or error
        else:
            return ranks
    raise ConfigError(f"no number of ranks from {at_least} to {at_most} fits: {reason}")


def share(world: int, each: int, machine: int) -> tuple[int, int]:
    """(first rank, ranks) of a machine, where machines of `each` ranks are filled one after another; 0 ranks: it has to wait.

    6 ranks on machines of 4: (0, 4), (4, 2), (6, 0).
    """
    first = min(world, machine * each)
    return first, min(each, world - first)


def gpus() -> int:
    """GPUs of this machine that answer, as nvidia-smi lists them, whatever it says of others; 0 where there is none, or no such program."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
