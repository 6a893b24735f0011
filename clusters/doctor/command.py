"""The command: this machine, then the others at once, then between them."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from clusters.doctor import data, disks, hosts, launcher, packages
from clusters.doctor.checks import EXCHANGE_S, Check, Options, answered, checks_of_machine, checks_of_run
from clusters.doctor.exchanges import exchanges_between
from clusters.doctor.finding import Finding, failed, ok
from parallel.health.same_code import source_digests
from run.config import RunConfig
from run.errors import ConfigError
from run.places import expanded

DEFAULT_PORT = 29500
REMOTE_S, REMOTE_QUICK_S = 420.0, 180.0
AT_ONCE = 64


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises ConfigError for arguments that cannot be used."""
    if arguments.overrides and not arguments.config:
        raise ConfigError(
            f"{arguments.overrides[0]}: overrides need the configuration that they change, with --config FILE"
        )
    try:
        ssh = hosts.ssh_words(arguments.ssh)
    except ValueError as error:
        raise ConfigError(f"--ssh {arguments.ssh}: {error}") from error
    found: list[Finding] = []

    def tell(findings: list[Finding]) -> None:
        found.extend(findings)
        if not arguments.json:
            for finding in findings:
                print(finding.line(), flush=True)

    there, findings = _machines(arguments.hosts)
    tell(findings)
    options = _options(arguments, there)
    run = None
    for finding in _here(options):
        if isinstance(finding, RunConfig):
            run = finding
        else:
            tell(finding)
    if there:
        mine = hosts.Answer(socket.gethostname(), source_digests(), packages.installed_versions(), [])
        for findings in _elsewhere(there, ssh, options, run, mine):
            tell(findings)
    counts = collections.Counter(finding.verdict for finding in found)
    if arguments.json:
        answer = hosts.Answer(socket.gethostname(), source_digests(), packages.installed_versions(), found)
        print(json.dumps(dataclasses.asdict(answer)))
    else:
        print(f"{counts['FAILED']} failed, {counts['warning']} warning(s), {counts['ok']} ok")
    return 1 if counts["FAILED"] else 0


def _machines(hostfile: Path | None) -> tuple[dict[str, int], list[Finding]]:
    if hostfile is None:
        return {}, []
    try:
        there = launcher.read_hostfile(expanded(hostfile))
    except launcher.HostfileError as error:
        said, _, remedy = str(error).rpartition(": ")
        return {}, [failed("hostfile", said, "", remedy)]
    return there, [ok("hostfile", f"{len(there)} machine(s), {sum(there.values())} ranks")]


def _options(arguments: argparse.Namespace, there: dict[str, int]) -> Options:
    import torch

    # The machine that asks need not be one that trains.
    slots = there.get(socket.gethostname(), 1 if there else 0)
    ranks = arguments.ranks or slots or max(torch.cuda.device_count(), 1)
    port = os.environ.get("MASTER_PORT", "")
    return Options(
        config=arguments.config or "",
        overrides=tuple(arguments.overrides),
        ranks=ranks,
        world=arguments.world or sum(there.values()) or arguments.ranks or 0,
        port=arguments.port or (int(port) if port.isdigit() else DEFAULT_PORT),
        quick=arguments.quick,
        is_one_of_many=socket.gethostname() in there or arguments.marker is not None,
        marker=arguments.marker,
    )


def _here(options: Options) -> Iterator[list[Finding] | RunConfig]:
    for check in checks_of_machine(options):
        yield answered(check)
    run: RunConfig | None = None
    if options.config:

        def read() -> list[Finding]:
            nonlocal run
            run, findings = data.check_config(options.config, options.overrides, options.world)
            return findings

        yield answered(Check("config", read))
        if run is not None:
            yield run
    for check in checks_of_run(run, options):
        yield answered(check)


def _elsewhere(
    there: dict[str, int], ssh: list[str], options: Options, run: RunConfig | None, mine: hosts.Answer
) -> Iterator[list[Finding]]:
    print(f"asking {', '.join(there)}", file=sys.stderr, flush=True)
    given = _given()
    with (
        disks.placed_marker(Path(run.runs if run else ".")) as marker,
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        asked = [pool.submit(_ask, host, ranks, ssh, options, marker, given, mine) for host, ranks in there.items()]
        reachable = True
        for answer in concurrent.futures.as_completed(asked):
            findings = answer.result()
            reachable &= not any(
                finding.name.endswith((": ssh", ": doctor")) and finding.verdict == "FAILED" for finding in findings
            )
            yield findings
    if reachable and not options.quick:
        yield exchanges_between(list(there), ssh, options.port, EXCHANGE_S, given)


def _ask(
    host: str,
    ranks: int,
    ssh: list[str],
    options: Options,
    marker: Path | None,
    given: dict[str, str],
    mine: hosts.Answer,
) -> list[Finding]:
    found = hosts.check_reachable(host, ssh)
    if not any(finding.verdict == "FAILED" and finding.name == "ssh" for finding in found):
        limit = REMOTE_QUICK_S if options.quick else REMOTE_S
        answer = hosts.ask_doctor(host, ssh, _words(options, ranks, marker), given, limit)
        found += [answer] if isinstance(answer, Finding) else [*hosts.compared(mine, answer), *answer.findings]
    return [finding.at(host) for finding in found]


def _words(options: Options, ranks: int, marker: Path | None) -> list[str]:
    """The doctor's arguments on another machine."""
    words = [f"--ranks={ranks}", f"--world={options.world}", f"--port={options.port}"]
    words += ["--quick"] * options.quick
    words += [f"--marker={marker}"] if marker else []
    return [*words, f"--config={options.config}", "--", *options.overrides] if options.config else words


def _given() -> dict[str, str]:
    """The variables that DeepSpeed's launcher would give ranks on other machines; secrets stay here."""
    handed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(launcher.HANDED_ON) and not launcher.is_secret(name)
    }
    return {**handed, **launcher.variables_of(launcher.environment_files())}
