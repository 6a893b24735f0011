"""What is asked for on the command line, checked: from here on every value may stand in a file for sbatch."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import sys
from pathlib import Path

from clusters.doctor.data import needs_cache
from clusters.sizes import Sizes, per_node_gib, sizes_of
from clusters.slurm import DEVICE_MEMORY
from data.transport import is_remote, local_path
from data.transport.urls import masked
from data.workers.loader import MAX_WORKERS
from run.config import RunConfig
from run.config_file import load_config
from run.errors import ConfigError
from run.places import is_path

ROOT = Path(__file__).resolve().parents[2]
IN_IMAGE = "/app/train.py"
"""Where the Dockerfile puts it."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@&|*+\[\]()-]*")
"""Partitions, accounts and lists of features; what follows in a line of options cannot begin within one."""
LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
MAX_WARN = 65535
SHARED_FLAGS = ("partition", "account", "qos", "constraint")


@dataclasses.dataclass(frozen=True)
class Job:
    """command: how the file was made. program: train.py as ranks see it. arguments: of train.py, but for seed and name of an array.
    folders: what a container needs of the machine. run_folder: relative to `directory`; of an array, without the seed."""

    command: tuple[str, ...]
    name: str
    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    memory_per_node: int
    sizes: Sizes
    limit: str
    warn: int
    flags: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    chain: int
    kind: str
    image: str
    launcher: str
    directory: str
    python: str
    program: str
    arguments: tuple[str, ...]
    folders: tuple[str, ...]
    run_folder: str
    cache: str
    interface: str

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def job_of(arguments: argparse.Namespace) -> Job:
    """Raises ConfigError for what cannot be."""
    seeds, more = _seeds(arguments.seeds)
    words = (*more, *arguments.overrides)
    _check(arguments, seeds, words)
    cached = (f"data.cache_dir={arguments.cache}",) if arguments.cache else ()
    run = load_config(arguments.config, (*words, *cached))
    directory = os.path.abspath(arguments.directory or os.curdir)
    cache = arguments.cache or (run.data.cache_dir if arguments.kind != "bare" and needs_cache(run) else "")
    folders = _folders(run, directory, cache, arguments.config) if arguments.kind != "bare" else ()
    ranks_per_node = arguments.ranks_per_node or arguments.gpus_per_node or 1
    sizes = sizes_of(run, arguments.nodes * ranks_per_node, arguments.gpus_per_node > 0, arguments.device_memory)
    if arguments.cores_per_rank:
        sizes = dataclasses.replace(sizes, cores=arguments.cores_per_rank)
    # Of a rank that is bound to its own cores, which `auto` would divide by the ranks of the node.
    spare = sizes.cores - sizes.threads - int(arguments.gpus_per_node > 0)
    auto = run.data.workers == "auto" and arguments.launcher == "srun"
    workers = (f"data.workers={max(1, min(MAX_WORKERS, spare))}",) if auto else ()
    if not sizes.fits:
        remedies = "".join(f"; {remedy}" for remedy in sizes.remedies)
        print(
            f"warning: by the plan a rank needs {sizes.peak_gib:.1f} GiB of a GPU's {arguments.device_memory:g}{remedies}",
            file=sys.stderr,
        )
    in_image = arguments.kind != "bare"
    here = "train.py" if arguments.directory or Path(directory) == ROOT else str(ROOT / "train.py")
    return Job(
        command=("python", "-m", "clusters", "slurm", *_words(arguments, seeds, words)),
        name=run.name,
        nodes=arguments.nodes,
        ranks_per_node=ranks_per_node,
        gpus_per_node=arguments.gpus_per_node,
        memory_per_node=arguments.memory_per_node or per_node_gib(sizes.memory_gib, ranks_per_node),
        sizes=sizes,
        limit=arguments.time,
        warn=arguments.warn,
        flags=tuple((name, getattr(arguments, name)) for name in SHARED_FLAGS if getattr(arguments, name)),
        seeds=seeds,
        chain=arguments.chain,
        kind=arguments.kind,
        image=arguments.image,
        launcher=arguments.launcher,
        directory=directory,
        python=arguments.python or ("python" if in_image or arguments.directory else sys.executable),
        program=IN_IMAGE if in_image else here,
        arguments=(f"--config={arguments.config}", *words, *((f"data.cache_dir={cache}",) if cache else ()), *workers),
        folders=folders,
        run_folder=os.path.join(run.runs, run.name),
        cache=cache,
        interface=arguments.interface,
    )


def seconds_of(limit: str) -> int:
    """Of what sbatch takes: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]. Raises ConfigError."""
    found = LIMIT.fullmatch(limit)
    if found is None:
        raise ConfigError(f"--time={limit}: write hours:minutes:seconds or days-hours, as 24:00:00 or 2-12")
    numbers = [int(number) for number in found["clock"].split(":")]
    if found["days"]:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) < 3:  # from the minutes on
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0)[:3]
    return (hours * 60 + minutes) * 60 + seconds


def _seeds(words: list[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """-> numbers, and overrides that stood behind them."""
    numbers = tuple(word for word in words if "=" not in word)
    for word in numbers:
        if not re.fullmatch(r"\d{1,18}", word):
            raise ConfigError(f"--seeds: {word!r} is no number from 0 on")
    seeds = tuple(map(int, numbers))
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {', '.join(numbers)} has a seed twice, and two runs cannot share a folder")
    return seeds, tuple(word for word in words if "=" in word)


def _check(arguments: argparse.Namespace, seeds: tuple[int, ...], words: tuple[str, ...]) -> None:
    for key, least in (("nodes", 1), ("ranks_per_node", 1), ("cores_per_rank", 1), ("memory_per_node", 1),
                       ("gpus_per_node", 0), ("chain", 0), ("warn", 1)):  # fmt: skip
        value = getattr(arguments, key)
        if value is not None and value < least:
            raise ConfigError(f"--{key.replace('_', '-')}={value}: must be at least {least}")
    if arguments.warn > MAX_WARN:
        raise ConfigError(f"--warn={arguments.warn}: Slurm takes {MAX_WARN} seconds at most")
    if (limit := seconds_of(arguments.time)) <= arguments.warn:
        raise ConfigError(f"--warn={arguments.warn} must be below the time limit of {limit} seconds")
    if arguments.gpus_per_node and (arguments.ranks_per_node or 1) > arguments.gpus_per_node:
        raise ConfigError(
            f"--ranks-per-node={arguments.ranks_per_node} is above --gpus-per-node={arguments.gpus_per_node}: a GPU takes one rank"
        )
    for name in SHARED_FLAGS:
        if not NAME.fullmatch(getattr(arguments, name) or "none"):
            raise ConfigError(f"--{name}={getattr(arguments, name)!r} is no name that Slurm takes")
    if not re.fullmatch(r"[A-Za-z0-9_.^=,-]*", arguments.interface):
        raise ConfigError(f"--interface={arguments.interface!r} is no name of a network interface")
    if (arguments.kind == "bare") == bool(arguments.image):
        raise ConfigError(
            f"--kind={arguments.kind} takes no --image: choose pyxis or apptainer"
            if arguments.image
            else f"--kind={arguments.kind} needs --image"
        )
    if arguments.chain and seeds:
        raise ConfigError("--chain with --seeds: make a file for each seed, with the overrides seed= and name=")
    if seeds and any(word.startswith("seed=") for word in words):
        raise ConfigError("--seeds with seed=: leave one of them out")
    given = [str(value) for value in vars(arguments).values() if isinstance(value, str)]
    for word in (*given, *words):
        if not word.isprintable():
            raise ConfigError(f"{word!r}: control characters cannot stand in a job file")
    for word in words:
        if masked(word) != word or "pipe:" in word:
            raise ConfigError(
                f"{masked(word).partition('pipe:')[0]} has a user, password, query or command, which a job file and the words of each rank "
                "would show to everyone: put it into the configuration, or log in by a netrc file or the store's own variables"
            )


def _words(arguments: argparse.Namespace, seeds: tuple[int, ...], words: tuple[str, ...]) -> list[str]:
    """The command again, from what it was understood as."""
    said = [f"--config={arguments.config}", f"--nodes={arguments.nodes}"]
    for key in ("gpus_per_node", "ranks_per_node", "cores_per_rank", "memory_per_node", "device_memory", "time", "warn", *SHARED_FLAGS,
                "chain", "kind", "image", "launcher", "directory", "python", "cache", "interface"):  # fmt: skip
        value = getattr(arguments, key)
        if value not in ("", None) and (key, value) not in (("chain", 0), ("device_memory", DEVICE_MEMORY)):
            said.append(f"--{key.replace('_', '-')}={value}")
    return [*said, *(["--seeds", *map(str, seeds)] if seeds else []), *words]


def _fixed(folder: str) -> str:
    """The folder above the first with a sign of patterns in its name."""
    parts = itertools.takewhile(lambda part: not re.search(r"[*?\[{]", part), Path(folder).parts)
    return str(Path(*parts))


def _folders(run: RunConfig, directory: str, cache: str, config: str) -> tuple[str, ...]:
    """Absolute and local; none within another. Raises ConfigError for names that no list of mounts can hold."""
    engine = run.parallel.deepspeed if is_path(run.parallel.deepspeed) else ""
    files = (config, engine, run.tracking.prometheus)
    named = [directory, run.runs, run.init, cache, *map(os.path.dirname, files)]
    for task in run.data.tasks:
        named += [
            task.path,
            *(_fixed(os.path.dirname(shard.removeprefix("@"))) for shard in task.shards if not is_remote(shard)),
        ]
    local = {
        os.path.normpath(os.path.join(directory, local_path(name))) for name in named if name and not is_remote(name)
    }
    for name in sorted(local):
        if re.search(r"[,:]", name):
            raise ConfigError(f"{name}: a comma or a colon cannot stand in a folder that a container mounts")
    return tuple(name for name in sorted(local) if not any(str(parent) in local for parent in Path(name).parents))
