"""Job files, checks and helpers for clusters.

Exit codes: 0 done, 1 a check failed, 2 the arguments, the run or this machine cannot be used.
"""

from __future__ import annotations

import argparse
import sys

from run.errors import EXIT_USER, USER_ERRORS


def parser() -> argparse.ArgumentParser:
    from clusters import doctor, kubernetes, slurm, store, supervise

    parser = argparse.ArgumentParser(
        prog="python -m clusters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (slurm, kubernetes, doctor, supervise, store):
        part.add_command(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.main(arguments)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return code


if __name__ == "__main__":
    sys.exit(main())
