"""train.py with one rank that goes wrong: `SABOTAGE=raise:1:2` has rank 1 raise in its second backward pass.

`kill` ends it by SIGKILL there, `sleep` holds it up for SLEEP_S, `catch` sends it SIGTERM and goes on. `overflow` makes gradients
infinite from there on.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time

from torch import Tensor

import train
from parallel.engine import Engine
from parallel.launch import launched_rank

SLEEP_S = 9.0


class SabotageError(RuntimeError):
    pass


def sabotage(deed: str, rank: int, call: int) -> None:
    original = Engine.backward
    calls = 0

    def backward(self: Engine, loss: Tensor) -> None:
        nonlocal calls
        calls += 1
        if launched_rank() == rank and (calls == call or (deed == "overflow" and calls > call)):
            match deed:
                case "overflow":
                    loss = loss * math.inf
                case "raise":
                    raise SabotageError("on purpose")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "sleep":
                    time.sleep(SLEEP_S)
                case "catch":
                    os.kill(os.getpid(), signal.SIGTERM)
        original(self, loss)

    Engine.backward = backward  # type: ignore[method-assign]


if __name__ == "__main__":
    deed, rank, call = os.environ["SABOTAGE"].split(":")
    sabotage(deed, int(rank), int(call))
    sys.exit(train.main())
