"""Hostfile and .deepspeed_env, read as DeepSpeed's launcher reads them, which ends with a traceback where they are wrong."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from clusters.doctor.finding import Finding, failed, ok, warning
from parallel.health.same_inputs import SECRET

ENV_FILE = ".deepspeed_env"
HANDED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""Beginnings of the names of variables that DeepSpeed's launcher gives the ranks on other machines; all others need .deepspeed_env."""


class HostfileError(Exception):
    """The hostfile cannot be used; one line with the place and the remedy."""


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by machine, in the file's order. Raises HostfileError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HostfileError(
            f"{path}: {getattr(error, 'strerror', None) or error}: name a hostfile with --hosts"
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", line)
        if not match:
            raise HostfileError(
                f"{path}:{number}: {line[:80]!r} is no line `NAME slots=N`, as gpu1 slots=8 (no spaces around =)"
            )
        host, slots = match[1], int(match[2])
        if not re.fullmatch(r"[A-Za-z0-9_][\w.@:-]*", host):
            raise HostfileError(f"{path}:{number}: {host!r} is no name of a machine")
        if host in hosts:
            raise HostfileError(f"{path}:{number}: {host} stands twice: give it one line with all its slots")
        if not slots:
            raise HostfileError(f"{path}:{number}: {host} has slots=0: remove the line, or say how many ranks it takes")
        hosts[host] = slots
    if not hosts:
        raise HostfileError(f"{path} names no machine: write a line for each, as gpu1 slots=8")
    return hosts


def check_environment_files() -> list[Finding]:
    """Those that DeepSpeed would read: in the home folder and then in the working directory, or where DS_ENV_FILE says."""
    found = [finding for place in environment_files() for finding in check_environment_file(place)]
    name = os.environ.get("DS_ENV_FILE")
    if not found and name is not None:
        return [
            failed(ENV_FILE, f"DS_ENV_FILE={name} is no file", "", "name a file that is there, or unset DS_ENV_FILE")
        ]
    return found or [ok(ENV_FILE, "none")]


def environment_files() -> list[Path]:
    """In the order in which they are read: what a later one says holds."""
    name = os.environ.get("DS_ENV_FILE", ENV_FILE)
    places = [os.path.abspath(os.path.join(os.path.expanduser(folder), name)) for folder in ("~", ".")]
    return [Path(place) for place in dict.fromkeys(places) if os.path.isfile(place)]


def check_environment_file(path: Path) -> list[Finding]:
    """Its values go into a shell command in double quotes, which other users of the machines see in the list of processes."""
    try:
        lines, mode = path.read_text(encoding="utf-8").splitlines(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        return [failed(ENV_FILE, f"{path} cannot be read: {error}", "", "save it as UTF-8, readable by you")]
    found = [finding for number, line in enumerate(lines, start=1) for finding in _check_line(f"{path}:{number}", line)]
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        found.append(
            failed(ENV_FILE, f"others may write {path}", "only you: its lines run as commands", f"chmod 600 {path}")
        )
    return found or [ok(ENV_FILE, f"{path}, {len(lines)} variable(s)")]


def variables_of(paths: Iterable[Path]) -> dict[str, str]:
    """What the files give the ranks of other machines, secrets left out. Lines that are wrong are left out, too."""
    found = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, sign, value = line.partition("=")
            if sign and re.fullmatch(r"[A-Za-z_]\w*", name.strip()) and not is_secret(name):
                found[name.strip()] = value.strip()
    return found


def is_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRET)


def _check_line(place: str, line: str) -> list[Finding]:
    name, sign, value = (part.strip() for part in line.partition("="))
    if not sign or name.startswith("#"):
        what = (
            "is empty" if not line.strip() else "is a comment" if name.startswith("#") else f"is {line.strip()[:40]!r}"
        )
        remedy = "remove the line: DeepSpeed knows neither comments nor empty lines and ends with a traceback, or leaves out the rest"
        return [failed(ENV_FILE, f"{place} {what}", "NAME=VALUE", remedy)]
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return [
            failed(
                ENV_FILE,
                f"{place}: {name[:40]!r} is no name of a variable",
                "NAME=VALUE",
                "write it without export and quotes",
            )
        ]
    if is_secret(name):
        remedy = "keep it in a file of yours on each machine (wandb login writes ~/.netrc), and out of here"
        return [failed(ENV_FILE, f"{place}: {name} would be seen in the list of processes", "no secrets", remedy)]
    if '"' in value or "\n" in value:
        remedy = "write the value without quotes: DeepSpeed adds its own"
        return [failed(ENV_FILE, f"{place}: {name} has a quotation mark", "", remedy)]
    if re.search(r"[$`\\]", value):
        remedy = "write what it stands for: the shell of the other machine would replace it"
        return [warning(ENV_FILE, f"{place}: {name} has $, ` or \\", "a plain value", remedy)]
    return []
