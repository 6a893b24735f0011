"""`python -m clusters kubernetes`: manifests for one run. The entry of its containers: ranks.py. docs/kubernetes.md tells the rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from run.command_line import above_zero

VARIANTS = ("job", "jobset", "trainjob")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "kubernetes",
        help="print manifests that train a run on a Kubernetes cluster",
        description="Prints manifests for kubectl apply -f -. Cores and memory follow from the configuration (train.py --plan); a layout "
        "that does not fit the ranks is refused as train.py refuses it. What they do: docs/kubernetes.md.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="run configuration (YAML), see configs/")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="pods of the job")
    parser.add_argument("--image", required=True, metavar="IMAGE", help="made by the Dockerfile")
    parser.add_argument(
        "--variant", choices=VARIANTS, default="job",
        help="job: an Indexed Job, needs nothing else (the default); jobset: restarts all pods together; trainjob: of Kubeflow",
    )  # fmt: skip
    parser.add_argument("--job-name", default="", metavar="NAME", help="of all resources (default: the run's name)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write a kustomize folder, one file a resource, in place of printing"
    )
    size = parser.add_argument_group("sizes")
    size.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="0: ranks on CPUs (default: 8)")
    size.add_argument(
        "--ranks-per-node", type=int, metavar="N", help="default: one for each GPU, or one where there is none"
    )
    size.add_argument("--cores-per-rank", type=int, metavar="N", help="default: threads and data workers of the run")
    size.add_argument(
        "--memory-per-node", type=int, metavar="GIB", help="host memory (default: estimated from the plan)"
    )
    size.add_argument("--device-memory", type=above_zero, default=80.0, metavar="GIB", help="of one GPU (default: 80)")
    size.add_argument("--shm-per-rank", type=int, default=1, metavar="GIB", help="of /dev/shm, for NCCL (default: 1)")
    ends = parser.add_argument_group("how it ends")
    ends.add_argument(
        "--grace",
        type=int,
        default=300,
        metavar="SECONDS",
        help="between SIGTERM and SIGKILL, for the step or the task under way and a save (default: 300)",
    )
    ends.add_argument(
        "--restarts", type=int, default=10, metavar="N", help="after failures; stops and preemptions are not counted"
    )
    places = parser.add_argument_group("places")
    places.add_argument(
        "--runs-claim",
        default="",
        metavar="NAME",
        help="volume claim that there is already (default: makes one, `runs`)",
    )
    places.add_argument(
        "--runs-size", type=int, default=200, metavar="GIB", help="of the claim that is made (default: 200)"
    )
    places.add_argument(
        "--data-claim",
        default="",
        metavar="NAME",
        help="volume claim with data sets, mounted to be read (default: none)",
    )
    places.add_argument(
        "--data-path", default="/data", metavar="FOLDER",
        help="where it is mounted; paths of the configuration that are relative begin here (default: /data)",
    )  # fmt: skip
    places.add_argument(
        "--cache-path",
        default="",
        metavar="FOLDER",
        help="of each node, for the cache (default: one that lives with the pod)",
    )
    net = parser.add_argument_group("network and secrets")
    net.add_argument("--interface", default="", metavar="NAME", help="network interface of NCCL's and gloo's sockets")
    net.add_argument(
        "--egress-port", type=int, action="append", default=[], metavar="N",
        help="a port that pods may reach outside, once or more; those of remote shards, and wandb's where it is online, are open",
    )  # fmt: skip
    net.add_argument(
        "--wandb-secret", default="wandb", metavar="NAME", help="its key `netrc` is mounted as a file (default: wandb)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.py takes them")
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    from clusters.kubernetes.manifests import manifests
    from clusters.kubernetes.request import request_of
    from clusters.kubernetes.text import one_text, write_folder

    request = request_of(arguments)
    found = manifests(request)
    if arguments.out:
        write_folder(arguments.out, found)
    else:
        print(one_text(found), end="")
    return 0
