"""`python -m clusters doctor`: can this machine, and can these machines, train? One line a check, with its remedy.

finding     what a check says
machine     limits, memory, threads, devices and their links, encodings
packages    versions against their pins, DeepSpeed's ops
network     interfaces, the machine's own name, the port
exchanges   ranks that really exchange messages, here or across machines
disks       speed, room and clock of folders
data        does the configuration parse, does every place of its shards answer
launcher    hostfile and .deepspeed_env, as DeepSpeed's launcher reads them
hosts       the same on other machines, and what must be equal there
checks, command    which checks are made, each within its time
"""

from __future__ import annotations

import argparse
from pathlib import Path

from run.command_line import positive

EPILOG = """\
Exit codes: 0 fine (warnings included), 1 a check failed, 2 the arguments cannot be used.

examples:
  python -m clusters doctor
  python -m clusters doctor --config configs/demo.yaml --ranks 2
  python -m clusters doctor --hosts hosts --config configs/demo.yaml data.cache_gib=50
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this machine, or all machines of a hostfile, before a run",
        description="Checks what a training needs of a machine, one line a check: ok, warning or FAILED, what was found, "
        "what is needed, and the remedy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--hosts",
        type=Path,
        metavar="HOSTFILE",
        help="check these machines by ssh, too: a hostfile of DeepSpeed's launcher",
    )
    parser.add_argument(
        "--ssh", default="ssh", metavar="COMMAND", help='how to reach them, as "ssh -p 2222" (default: %(default)s)'
    )
    parser.add_argument("--config", metavar="FILE", help="check that this run finds its data and has room")
    parser.add_argument(
        "--ranks",
        type=positive,
        metavar="N",
        help="ranks of a machine (default: its slots in the hostfile, or its GPUs, or 1)",
    )
    parser.add_argument(
        "--port", type=positive, metavar="N", help="where ranks will meet (default: MASTER_PORT, or DeepSpeed's 29500)"
    )
    parser.add_argument("--quick", action="store_true", help="without measuring disks and exchanges: some seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    # What one doctor tells another: the ranks of all machines, and a file that it should see.
    parser.add_argument("--world", type=positive, help=argparse.SUPPRESS)
    parser.add_argument("--marker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the configuration, as in train.py")
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    from clusters.doctor.command import main

    return main(arguments)
