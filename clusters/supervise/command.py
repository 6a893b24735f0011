"""Reads what the command was told and chooses: one machine or several."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from clusters.ranks import LEAVE_S
from clusters.supervise.one import supervise_one
from clusters.supervise.policy import Limits
from clusters.supervise.several import Machines, supervise_several
from clusters.supervise.sizes import gpus, most_that_fit
from run.command_line import parse_arguments
from run.config import RunConfig
from run.config_file import load_config
from run.errors import ConfigError


def supervise(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises ConfigError."""
    words = words_of(arguments.words)
    run = run_of(words)
    for name in ("min", "attempts", "max_restarts", "return_after", "save_s"):
        least, value = int(name in ("min", "attempts", "save_s")), getattr(arguments, name)
        if not value >= least:  # nor no number at all
            raise ConfigError(f"--{name.replace('_', '-')}={value}: must be at least {least}")
    nproc = arguments.nproc if arguments.nproc is not None else gpus() or 1
    if nproc < arguments.min and arguments.nnodes is None:
        raise ConfigError(f"--nproc={nproc} is below --min={arguments.min}")
    if nproc < 1:
        raise ConfigError(f"--nproc={nproc}: must be at least 1")
    if (arguments.nnodes is None) != (arguments.rendezvous is None):
        raise ConfigError("--nnodes and --rendezvous go together: --nnodes 1:4 --rendezvous host1:29400")
    limits = Limits(nproc, arguments.attempts, arguments.max_restarts, arguments.return_after)
    if arguments.nnodes is None:
        most = most_that_fit(run, nproc, arguments.min)
        limits = Limits(most, arguments.attempts, arguments.max_restarts, arguments.return_after)
        return supervise_one(words, run, arguments.nproc, arguments.min, limits, LEAVE_S)
    machines = machines_of(arguments.nnodes, arguments.rendezvous)
    most_that_fit(run, machines.most * nproc, arguments.min)
    return supervise_several(words, run, machines, nproc, arguments.min, limits, arguments.save_s)


def words_of(words: list[str]) -> list[str]:
    """The training's command: a script of Python and its arguments. Raises ConfigError."""
    words = words[1:] if words[:1] == ["--"] else words
    if words and re.fullmatch(r"python[\d.]*", Path(words[0]).name):
        words = words[1:]
    if not words:
        raise ConfigError("no training is named: add `-- train.py --config FILE` at the end")
    if not Path(words[0]).is_file():
        raise ConfigError(
            f"{words[0]}: no such file; name the training's script after --, as in `-- train.py --config FILE`"
        )
    return words


def run_of(words: list[str]) -> RunConfig:
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        raise ConfigError(f"`{words[0]}` is given no --config: add `-- {words[0]} --config FILE`")
    arguments = parse_arguments(words[1:])
    if arguments.describe or arguments.plan:
        raise ConfigError("--describe and --plan train nothing: start them without a supervisor")
    return load_config(arguments.config, arguments.overrides)


def machines_of(nnodes: str, rendezvous: str) -> Machines:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", nnodes)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(f"--nnodes={nnodes}: give the fewest and the most machines, as 2:4")
    meeting = re.fullmatch(r"([\w.-]+|\[[\da-fA-F:]+\]):(\d{1,5})", rendezvous)
    if not meeting or not 0 < int(meeting[2]) < 1 << 16:
        raise ConfigError(f"--rendezvous={rendezvous}: give a host and a free port, as host1:29400")
    return Machines(least, most, rendezvous)
