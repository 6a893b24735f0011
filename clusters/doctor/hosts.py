"""The same checks on other machines, and what must be equal there."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import pydantic

from clusters.doctor.disks import clock_finding
from clusters.doctor.finding import Finding, failed, ok, warning
from parallel.health.same_code import different_files

PROBE_S = 15.0
BATCH = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
"""No questions for passwords, which nobody would see."""
REMEDIES = (
    ("Permission denied", "ssh-copy-id {host}, with a key that needs no passphrase or an agent that knows it"),
    ("Host key verification failed", "ssh {host} once by hand, or ssh-keyscan {host} >> ~/.ssh/known_hosts"),
    ("Could not resolve", "mend the name in the hostfile, DNS or /etc/hosts"),
    ("", "is the machine up, does sshd run there, is its port open to this machine?"),
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a doctor prints with --json. code: digests of source files by path; versions: of packages by name."""

    host: str
    code: dict[str, str]
    versions: dict[str, str]
    findings: list[Finding]


def ssh_words(command: str) -> list[str]:
    """The words to put before a machine's name. Raises ValueError for quotes that do not end."""
    words = shlex.split(command) or ["ssh"]
    return words + (BATCH if os.path.basename(words[0]) == "ssh" else [])


def check_reachable(host: str, ssh: Sequence[str]) -> list[Finding]:
    """Without a password, and by which clock. A FAILED among the findings: the machine cannot be asked."""
    before = time.time()
    code, output, errors = _run([*ssh, host, "date +%s.%N"], PROBE_S)
    after = time.time()
    match = re.search(r"^(\d+\.\d+)\s*$", output, re.MULTILINE)
    if code != 0 or not match:
        said = _last(errors) or _last(output) or f"ended with {code}"
        remedy = next(remedy for sign, remedy in REMEDIES if sign in said)
        return [failed("ssh", said, "a login without a password", remedy.format(host=host))]
    there = float(match[1])
    return [
        ok("ssh", f"answers in {after - before:.1f} s"),
        clock_finding("clock", max(before - there, there - after, 0), f"of {host}"),
    ]


def ask_doctor(
    host: str, ssh: Sequence[str], words: Sequence[str], given: Mapping[str, str], limit_s: float
) -> Answer | Finding:
    """words: of the doctor's command there, which runs in this working directory's namesake with this interpreter's, as DeepSpeed's
    launcher has it."""
    command = ["env", *(f"{name}={value}" for name, value in given.items())]
    command += [sys.executable, "-m", "clusters", "doctor", "--json", *words]
    code, output, errors = _run([*ssh, host, f"cd {shlex.quote(os.getcwd())} && {shlex.join(command)}"], limit_s)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if code not in (0, 1) or not lines:
        said = _last(errors) or f"ended with {code}"
        remedy = f"have the same folder {os.getcwd()} and the same environment {sys.executable} there"
        return failed("doctor", said, "", remedy)
    try:
        return pydantic.TypeAdapter(Answer).validate_json(lines[-1])
    except pydantic.ValidationError:
        return failed("doctor", "an answer that this one does not understand", "", "have the same code on all machines")


def compared(mine: Answer, theirs: Answer) -> list[Finding]:
    """Code and packages, which must be the same on all machines."""
    files = different_files([mine.code, theirs.code])
    more = f" and {len(files) - 3} more" * (len(files) > 3)
    found = [
        failed("code", f"{', '.join(files[:3])}{more} differ from here", "the same code", "git pull or rsync it there")
        if files
        else ok("code", f"the same {len(mine.code)} files as here")
    ]
    names = sorted(
        name for name in mine.versions.keys() & theirs.versions.keys() if mine.versions[name] != theirs.versions[name]
    )
    for name in names:
        remedy = "make the environments from the same pins, or share one"
        found.append(warning(f"package {name}", theirs.versions[name], f"{mine.versions[name]} as here", remedy))
    return found


def _run(command: Sequence[str], limit_s: float) -> tuple[int, str, str]:
    """-> (exit code, output, errors)."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, stdin=subprocess.DEVNULL, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {limit_s:g} s"
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout, done.stderr


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
