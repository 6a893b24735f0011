"""train.py with one rank that goes wrong: `SABOTAGE=raise:1:2` has rank 1 raise in its second backward pass.

`kill` ends it by SIGKILL there, `sleep` holds it up for SLEEP_S, `catch` sends it SIGTERM and goes on. `overflow` makes gradients
infinite from there on. `ask:1:2` sends SIGTERM to rank 1 in its second evaluation of a task.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import time
from typing import Any

from torch import Tensor

import train
from evaluation.in_training import InTraining
from parallel.engine import Engine
from parallel.launch import launched_rank

SLEEP_S = 9.0


class SabotageError(RuntimeError):
    pass


def sabotage(deed: str, rank: int, call: int) -> None:
    if deed == "ask":
        ask(rank, call)
        return
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


def ask(rank: int, call: int) -> None:
    original, calls = InTraining._row, itertools.count(1)

    def row(self: InTraining, *asked: Any) -> Any:
        if launched_rank() == rank and next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *asked)

    InTraining._row = row  # type: ignore[method-assign]


if __name__ == "__main__":
    deed, rank, call = os.environ["SABOTAGE"].split(":")
    sabotage(deed, int(rank), int(call))
    sys.exit(train.main())
