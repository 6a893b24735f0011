"""torchrun, whose tracebacks are left out where it was stopped or has given up: they say where in torch, and not why."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except Exception as error:
        print(
            f"supervise: the agent ended: {type(error).__name__}: {str(error).splitlines()[0]}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
