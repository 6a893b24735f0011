"""Ranks that really exchange messages, here or across machines."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

import pydantic

from clusters.doctor.finding import Finding, failed, ok, warning
from clusters.ranks import free_port
from parallel.health.links import Exchange
from parallel.health.same_code import ROOT

SMALL, LARGE = 4 << 10, 64 << 20
HERE, GPUS, MACHINES = 0.1, 5.0, 0.2
"""GB/s below which a word is said: between processes, over PCIe, and over a network, where 1 Gbit/s carries 0.12."""
SETTLE_S = 3.0
VARIABLES = "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
MEET = f"choose an interface that all ranks reach ({VARIABLES}), open ports between the machines; NCCL_DEBUG=INFO tells more"
FASTER = f"end what else uses the machine or network, or choose a faster interface ({VARIABLES})"
RANK_COMMAND = [sys.executable, "-m", "clusters.doctor.ranks"]


def exchanges_here(ranks: int, limit_s: float, sizes: Sequence[int] = (SMALL, LARGE)) -> list[Finding]:
    """Between ranks of this machine, on its GPUs where it has some."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 1:
        return [ok("exchange", "one GPU: nothing to exchange")]
    world = min(ranks, gpus) if gpus else ranks
    if world < 2:
        return [ok("exchange", "one rank: nothing to exchange")]
    port = free_port()
    commands = [
        _with(
            variables(rank, world, rank, "127.0.0.1", port), [*RANK_COMMAND, *map(str, sizes), f"--limit={limit_s:g}"]
        )
        for rank in range(world)
    ]
    return judged("exchange", commands, limit_s, GPUS if gpus else HERE)


def exchanges_between(
    hosts: Sequence[str],
    ssh: Sequence[str],
    port: int,
    limit_s: float,
    given: Mapping[str, str],
    sizes: Sequence[int] = (SMALL, LARGE),
) -> list[Finding]:
    """Between machines, a rank on each. given: variables that ranks there are to have."""
    if len(hosts) < 2:
        return []
    commands = []
    for rank, host in enumerate(hosts):
        words = _with({**given, **variables(rank, len(hosts), 0, hosts[0].rpartition("@")[2], port)}, RANK_COMMAND)
        words += [*map(str, sizes), f"--limit={limit_s:g}"]
        commands.append([*ssh, host, f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)}"])
    return judged("exchange between machines", commands, limit_s, MACHINES)


def variables(rank: int, world: int, local_rank: int, address: str, port: int) -> dict[str, str]:
    """What a launcher would tell this rank."""
    told = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    return {name: str(value) for name, value in told.items()}


def judged(name: str, commands: Sequence[Sequence[str]], limit_s: float, slow_gb_per_s: float) -> list[Finding]:
    """commands: of all ranks, of which the first prints what was measured."""
    output, problem = _together(commands, limit_s)
    if problem:
        return [failed(name, problem, "", MEET)]
    try:
        found = pydantic.TypeAdapter(list[Exchange]).validate_json(output.strip().splitlines()[-1])
    except (pydantic.ValidationError, IndexError):
        return [failed(name, f"the first rank answered {output[-80:]!r}", "", MEET)]
    findings = []
    for exchange in found:
        label, size = f"{name} {exchange.operation}", _size(exchange.num_bytes)
        text = f"{size} in {1e3 * exchange.seconds:,.2f} ms between {len(commands)} ranks"
        if exchange.num_bytes < LARGE:
            findings.append(ok(label, text))
            continue
        text += f", {exchange.gb_per_s:.2f} GB/s"
        slow = exchange.gb_per_s < slow_gb_per_s
        findings.append(warning(label, text, f"{slow_gb_per_s:g} GB/s", FASTER) if slow else ok(label, text))
    return findings


def _together(commands: Sequence[Sequence[str]], limit_s: float) -> tuple[str, str]:
    """-> (what the first printed, what went wrong). None of the processes outlives the call."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    processes: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as files:
        # Files, as a pipe that nobody reads would stop a rank that prints much, such as NCCL_DEBUG=INFO does.
        outputs, errors = (
            [files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in commands] for _ in range(2)
        )
        try:
            for command, output, complaint in zip(commands, outputs, errors, strict=True):
                environment = os.environ | {"PYTHONPATH": path}
                words = list(command)
                processes.append(
                    subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=complaint)
                )
            while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
                if any(codes):
                    deadline = min(deadline, time.monotonic() + SETTLE_S)  # the others would wait for it
                time.sleep(0.1)
        except OSError as error:
            return "", f"{commands[0][0]}: {error.strerror}"
        finally:
            for process in processes:
                process.kill()
                process.wait()
        printed, *complaints = map(_read, [outputs[0], *errors])
    if not any(codes) and None not in codes:
        return printed, ""
    for code, said in zip(codes, complaints, strict=True):
        lines = [line for line in said.splitlines() if line.strip()]
        if code and lines:
            return "", next((line for line in lines if line.startswith("rank ")), lines[-1])
    return "", f"ranks did not end within {limit_s:g} s"


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _with(given: Mapping[str, str], words: Sequence[str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in given.items()), *words]


def _size(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB" if num_bytes >= 1 << 20 else f"{num_bytes >> 10} KiB"
