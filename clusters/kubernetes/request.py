"""What is asked for: a run, its ranks, their sizes and places; everything checked, so that making manifests cannot fail."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import PurePosixPath

from clusters.kubernetes.inside import CACHE, CONFIG, CONFIG_FOLDER, RUNS, config_files, outside_ports, run_inside
from clusters.sizes import per_node_gib, sizes_of
from run.config import RunConfig, check_layout
from run.config_file import load_config
from run.errors import ConfigError

LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
LONGEST = 40
"""Of a job's name: `-node-0-1234` is put behind it, and a host's name has 63 characters."""
OF_THE_POD = tuple(map(PurePosixPath, (CONFIG_FOLDER, RUNS, CACHE, "/app", "/tmp", "/dev/shm", "/secrets")))
IMAGE = r"[\w][\w.:/@-]*"
INTERFACE = r"[\w.=^,-]+"


@dataclasses.dataclass(frozen=True)
class Request:
    """name: of all resources. per_node: ranks of a pod; gpus: of a pod. cores, memory_gib: of a pod, shm_gib included. files: of the
    ConfigMap. runs_gib: of the claim that is made, 0 where it is there already. cache_gib: of the volume that lives with a pod.
    ports: that pods may reach outside."""

    name: str
    image: str
    variant: str
    nodes: int
    per_node: int
    gpus: int
    cores: int
    threads: int
    memory_gib: int
    shm_gib: int
    cache_gib: int
    grace_s: int
    restarts: int
    files: dict[str, str]
    runs_claim: str
    runs_gib: int
    data_claim: str
    data_path: str
    cache_path: str
    interface: str
    ports: tuple[int, ...]
    wandb_secret: str

    @property
    def words(self) -> tuple[str, ...]:
        """The command of a container, after its entry."""
        return ("train.py", "--config", f"/config/{CONFIG}")


def request_of(arguments: argparse.Namespace) -> Request:
    """Raises ConfigError for what cannot be. A run that does not fit its GPUs is told on standard error: the plan is an estimate."""
    for name, least in (
        ("nodes", 1), ("gpus_per_node", 0), ("ranks_per_node", 1), ("cores_per_rank", 1), ("memory_per_node", 1),
        ("shm_per_rank", 1), ("grace", 1), ("restarts", 0), ("runs_size", 1),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}={value}: must be at least {least}")
    run = load_config(arguments.config, arguments.overrides)
    gpus = arguments.gpus_per_node
    per_node = arguments.ranks_per_node or gpus or 1
    if gpus and per_node > gpus:
        raise ConfigError(f"--ranks-per-node={per_node}: a pod has --gpus-per-node={gpus}, and each rank takes one")
    check_layout(run, arguments.nodes * per_node)
    _check_words(arguments)
    # Before the plan, which may look for data sets where they are.
    inside = run_inside(run, arguments.data_path, bool(arguments.data_claim))
    sizes = sizes_of(run, arguments.nodes * per_node, gpus > 0, arguments.device_memory)
    if not sizes.fits:
        remedies = "; ".join(sizes.remedies)
        print(
            f"warning: a rank needs {sizes.peak_gib:.1f} GiB of --device-memory={arguments.device_memory:g}: {remedies}",
            file=sys.stderr,
        )
    shm = arguments.shm_per_rank * per_node
    return Request(
        name=arguments.job_name or _job_name(run),
        image=arguments.image,
        variant=arguments.variant,
        nodes=arguments.nodes,
        per_node=per_node,
        gpus=gpus,
        cores=(arguments.cores_per_rank or sizes.cores) * per_node,
        threads=sizes.threads,
        memory_gib=(arguments.memory_per_node or per_node_gib(sizes.memory_gib, per_node)) + shm,
        shm_gib=shm,
        cache_gib=round(run.data.cache_gib * 1.1) + 1,
        grace_s=arguments.grace,
        restarts=arguments.restarts,
        files=config_files(inside),
        runs_claim=arguments.runs_claim or "runs",
        runs_gib=0 if arguments.runs_claim else arguments.runs_size,
        data_claim=arguments.data_claim,
        data_path=arguments.data_path,
        cache_path=arguments.cache_path,
        interface=arguments.interface,
        ports=tuple(sorted({*outside_ports(run), *arguments.egress_port})),
        wandb_secret=arguments.wandb_secret,
    )


def _job_name(run: RunConfig) -> str:
    """The run's name as Kubernetes takes it."""
    name = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
    if not re.match("[a-z]", name) or len(name) > LONGEST:
        raise ConfigError(
            f"name={run.name!r} makes no name of a job ({name!r}): choose one with --job-name=, a letter first, {LONGEST} characters "
            "at most"
        )
    return name


def _check_words(arguments: argparse.Namespace) -> None:
    """What goes into manifests as it is."""
    name = arguments.job_name
    if name and (not re.fullmatch(f"(?=[a-z]){LABEL}", name) or len(name) > LONGEST):
        raise ConfigError(
            f"--job-name={name}: small letters, digits and dashes, a letter first, {LONGEST} characters at most"
        )
    for option in ("runs_claim", "data_claim", "wandb_secret"):
        value = getattr(arguments, option)
        if value and (not re.fullmatch(rf"{LABEL}(\.{LABEL})*", value) or len(value) > 253):
            raise ConfigError(f"--{option.replace('_', '-')}={value}: is no name of a resource")
    if not re.fullmatch(IMAGE, arguments.image):
        raise ConfigError(f"--image={arguments.image}: is no name of an image, as registry.example.org/team/image:tag")
    if arguments.interface and not re.fullmatch(INTERFACE, arguments.interface):
        raise ConfigError(f"--interface={arguments.interface}: is no name of an interface, as eth0")
    for option in ("data_path", "cache_path"):
        value = getattr(arguments, option)
        if value and (not value.startswith("/") or ".." in value.split("/") or ":" in value):
            raise ConfigError(f"--{option.replace('_', '-')}={value}: must be a whole path, without .. and :")
    place = PurePosixPath(arguments.data_path)
    if arguments.data_path and any(place == own or own in place.parents or place in own.parents for own in OF_THE_POD):
        listed = ", ".join(map(str, OF_THE_POD))
        raise ConfigError(f"--data-path={arguments.data_path}: pods have places of their own, {listed}: choose another")
    if wrong := [port for port in arguments.egress_port if not 0 < port < 1 << 16]:
        raise ConfigError(f"--egress-port={wrong[0]}: is no port")
