"""A training that goes on after ranks or machines are lost, with as many as fit.

sizes      how many ranks a configuration fits
ranks      processes of one machine: started, watched, none left over
policy     what follows the end of a start: again, with how many, or an exit code; pure
one        one machine: starts until the run is done
machine    several machines: what torchrun's agent starts on each
several    several machines: torchrun's agent itself (agent)
"""

from __future__ import annotations

import argparse

HELP = """Start the ranks of this machine and keep the training going: after a lost rank it goes on with the most ranks that fit, and with
all again after a checkpoint. micro_batches stays, so a step stays the same. Several machines: the same command on each, with --nnodes
and --rendezvous; torchrun's elastic agent brings them together, and --nproc ranks are started on each.

Signals: SIGTERM, SIGINT, SIGHUP and SIGUSR1 save and stop (85); SIGUSR2 saves and starts all ranks again.

Exit codes: those of train.py (0 done, 2 configuration or data, 85 stopped after saving), and 1 where starting again is of no use."""
EXAMPLE = """examples:
  python -m clusters supervise --nproc 8 -- train.py --config configs/demo.yaml
  python -m clusters supervise --nproc 8 --nnodes 2:4 --rendezvous host1:29400 -- train.py --config configs/demo.yaml"""


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "supervise",
        help="start a training again after lost ranks or machines, with as many as fit",
        description=HELP,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nproc", type=int, metavar="N", help="ranks of this machine (default: its GPUs, else 1)")
    parser.add_argument("--min", type=int, default=1, metavar="N", help="fewest ranks to go on with (default 1)")
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="failures in all before it gives up (default 100)"
    )
    parser.add_argument(
        "--attempts",
        type=int,
        default=3,
        metavar="N",
        help="failures without a new checkpoint before it gives up (default 3)",
    )
    parser.add_argument(
        "--return-after",
        type=float,
        default=600.0,
        metavar="S",
        help="with fewer ranks: seconds after which all are started again, at the next checkpoint; doubled where one is lost again "
        "(default 600; one machine alone)",
    )
    parser.add_argument("--nnodes", metavar="MIN:MAX", help="machines; the same command is started on each of them")
    parser.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="where machines meet: on the one that is to stay, a free port"
    )
    parser.add_argument(
        "--save-s", type=int, default=120, metavar="S", help="several machines: seconds for a save (default 120)"
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- train.py ...", help="the training's command, after --"
    )
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    from clusters.supervise.command import supervise

    return supervise(arguments)
