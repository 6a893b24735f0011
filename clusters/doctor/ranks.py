"""One rank of the doctor: `python -m clusters.doctor.ranks BYTES... --limit S`, with a launcher's variables. The first rank prints what it
measured as a line of JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys

from parallel.health.links import measure_exchanges
from parallel.launch import PreflightError, await_first_rank, check_interfaces, launched_rank


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clusters.doctor.ranks", description=__doc__)
    parser.add_argument("sizes", type=int, nargs="+", metavar="BYTES")
    parser.add_argument(
        "--limit", type=float, required=True, metavar="S", help="seconds after which the process ends itself"
    )
    arguments = parser.parse_args(argv)
    signal.setitimer(signal.ITIMER_REAL, arguments.limit)  # its end is SIGALRM's: nobody may be left to end it
    import torch

    torch.set_num_threads(1)
    try:
        check_interfaces("nccl" if torch.cuda.is_available() else "gloo")
        await_first_rank(arguments.limit)
        found = measure_exchanges(arguments.sizes, arguments.limit)
    except (PreflightError, RuntimeError) as error:
        print(f"rank {launched_rank()}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    if launched_rank() == 0:
        print(json.dumps([dataclasses.asdict(exchange) for exchange in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
