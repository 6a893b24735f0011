"""train.py with one rank that goes wrong: `SABOTAGE=raise:1:2` has rank 1 raise in the optimizer step of step 2.

`kill` ends it by SIGKILL there, `sleep` holds it up for SLEEP_S, `catch` sends it SIGTERM and goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import train
from parallel.engine import Engine, StepInfo
from parallel.mesh import launched_rank

SLEEP_S = 9.0


class SabotageError(RuntimeError):
    pass


def sabotage(deed: str, rank: int, step: int) -> None:
    original = Engine.step
    calls = 0

    def step_or_not(self: Engine, lr: float) -> StepInfo:
        nonlocal calls
        calls += 1
        if launched_rank() == rank and calls == step:
            match deed:
                case "raise":
                    raise SabotageError("on purpose")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "sleep":
                    time.sleep(SLEEP_S)
                case "catch":
                    os.kill(os.getpid(), signal.SIGTERM)
        return original(self, lr)

    Engine.step = step_or_not  # type: ignore[method-assign]


if __name__ == "__main__":
    deed, rank, step = os.environ["SABOTAGE"].split(":")
    sabotage(deed, int(rank), int(step))
    sys.exit(train.main())
