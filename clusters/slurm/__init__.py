"""`python -m clusters slurm`: a file for sbatch, made for one run."""

from __future__ import annotations

import argparse

from run.command_line import above_zero

DEVICE_MEMORY = 80.0
"""GiB of one GPU."""

KINDS = ("bare", "pyxis", "apptainer")
LAUNCHERS = ("srun", "deepspeed")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "slurm",
        help="print a file for sbatch that trains a run, saves ahead of the time limit and goes on",
        description="Prints a file for sbatch. Cores and memory follow from the configuration (train.py --plan); a layout that does not "
        "fit the ranks is refused as train.py refuses it. What the file does: docs/slurm.md.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="run configuration (YAML), see configs/")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="machines of the job")
    size = parser.add_argument_group("sizes")
    size.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="0: ranks on CPUs (default: 8)")
    size.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="default: one for each GPU, or one where there is none"
    )
    size.add_argument(
        "--cores-per-rank", type=int, metavar="N", help="default: threads and data workers of the configuration"
    )
    size.add_argument(
        "--memory-per-node", type=int, metavar="GIB", help="host memory (default: estimated from the plan)"
    )
    size.add_argument(
        "--device-memory",
        type=above_zero,
        default=DEVICE_MEMORY,
        metavar="GIB",
        help=f"of one GPU (default: {DEVICE_MEMORY:g})",
    )
    time = parser.add_argument_group("time and place")
    time.add_argument("--time", default="24:00:00", metavar="LIMIT", help="as sbatch takes it (default: 24:00:00)")
    time.add_argument(
        "--warn",
        type=int,
        default=300,
        metavar="SECONDS",
        help="ask for a save so long before the limit (default: 300)",
    )
    for name, what in (
        ("partition", "of the cluster"),
        ("account", "that is charged"),
        ("qos", "quality of service"),
        ("constraint", "features that nodes must have"),
    ):
        time.add_argument(f"--{name}", default="", metavar="NAME", help=what)
    many = parser.add_argument_group("several jobs")
    many.add_argument(
        "--seeds", nargs="+", action="extend", default=[], metavar="N", help="an array: a run for each seed"
    )
    many.add_argument(
        "--chain", type=int, default=0, metavar="K", help="K jobs one after another, in place of requeueing one"
    )
    how = parser.add_argument_group("how ranks start")
    how.add_argument("--kind", choices=KINDS, default="bare", help="bare: without a container (the default)")
    how.add_argument("--image", default="", metavar="IMAGE", help="of pyxis (registry or .sqsh) or apptainer (.sif)")
    how.add_argument(
        "--launcher", choices=LAUNCHERS, default="srun",
        help="srun: a task for each rank (the default); deepspeed: a task for each node, which starts its ranks",
    )  # fmt: skip
    how.add_argument(
        "--directory",
        default="",
        metavar="FOLDER",
        help="on the cluster, where train.py is (default: where you are now)",
    )
    how.add_argument(
        "--python", default="", metavar="FILE", help="interpreter (default: this one; in an image, python)"
    )
    how.add_argument("--cache", default="", metavar="FOLDER", help="of each node, for shards that are not local files")
    how.add_argument("--interface", default="", metavar="NAME", help="network interface of NCCL's and gloo's sockets")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.py takes them")
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    from clusters.slurm.job import job_of
    from clusters.slurm.script import render

    print(render(job_of(arguments)), end="")
    return 0
