"""The command as a whole: on this machine, and on machines of a hostfile."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import doctor
from run.errors import ConfigError
from tests.helpers.places import ROOT
from tests.helpers.runs import environment

LINE = re.compile(r"(ok     |warning|FAILED ) [\w.: /-]+: .+")


def answer(*words: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_command(parser.add_subparsers())
    arguments = parser.parse_args(["doctor", *words])
    code: int = arguments.main(arguments)
    return code


def test_a_machine_that_can_train(config: Path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    code = answer("--quick", f"--config={config}", "--ranks=2", f"--port={port}", "parallel.expert=2")
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    names = {line[8:].partition(":")[0] for line in lines}
    assert any(name.startswith("package") for name in names)
    wanted = {"python", "ops", "devices", "memory", "shared memory", "open files", "locale", "hostname", "port"}
    assert names >= {*wanted, "config", "runs room", "runs clock", "data shapes", "data captions"}
    # Others may fill this machine: memory alone may fail, and then says so.
    failing = [line for line in lines if line.startswith("FAILED") and "memory" not in line]
    assert not failing and code == any(line.startswith("FAILED") for line in lines)
    assert re.fullmatch(r"\d failed, \d+ warning\(s\), \d+ ok", last)


def test_failures_are_told_and_give_1(config: Path, capsys, monkeypatch):
    """Four at once; the others are still looked at."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth99")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        words = ("--quick", f"--config={config}", f"--port={port}", "--ranks=3", "data.tasks.shapes.path=/nowhere")
        assert answer(*words, f"runs={config}", "micro_batches=6", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    failed = {finding["name"] for finding in found["findings"] if finding["verdict"] == "FAILED"}
    assert {"gloo interface", "port", "runs folder", "data shapes"} <= failed
    assert all(finding["remedy"] for finding in found["findings"] if finding["verdict"] != "ok")
    assert found["code"]["train.py"] and found["versions"]["torch"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["steps=3"], "with --config FILE"), (["--ssh", "ssh 'a"], "No closing quotation")],
)
def test_arguments_that_cannot_be_used(words, said):
    with pytest.raises(ConfigError, match=said):
        answer(*words)


def test_numbers_that_are_none(capsys):
    with pytest.raises(SystemExit) as caught:
        answer("--ranks=0")
    assert caught.value.code == 2 and "--ranks" in capsys.readouterr().err


def test_a_hostfile_that_is_wrong_does_not_hide_the_rest(tmp_path, capsys):
    hosts = tmp_path / "hosts"
    hosts.write_text("gpu1 slots=8\ngpu1 slots=8\n")
    assert answer("--quick", f"--hosts={hosts}") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"FAILED  hostfile: {hosts}:2: gpu1 stands twice -> give it one line with all its slots"
    assert any(line.startswith("ok      python:") for line in lines)


def test_the_import_is_cheap():
    code = (
        "import sys, clusters.doctor; print([m for m in ('torch', 'fsspec', 'pydantic', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


SCRIPT = "import sys; from tests.clusters.doctor.test_command import answer; sys.exit(answer(*sys.argv[1:]))"


def started(*words: str, folder: Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a doctor on another machine is."""
    variables = environment() | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | extra
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], cwd=folder, env=variables, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_exchanges_are_measured_and_the_disk_too(tmp_path):
    done = started("--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    for name in ("exchange all-reduce", "exchange all-to-all"):
        assert re.search(r"64 MiB in [\d.,]+ ms between 2 ranks, \d+\.\d\d GB/s", found[name]["found"])
    assert re.fullmatch(r"writes [\d,]+ MB/s, reads [\d,]+ MB/s in \S+", found["runs speed"]["found"])


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """A real sshd on the loopback -> the ssh command that reaches it."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or os.geteuid():
        pytest.skip("needs root and sshd (apt-get install openssh-server)")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    shutil.copy(tmp_path / "mine.pub", tmp_path / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    settings = {
        "ListenAddress": f"127.0.0.1:{port}", "HostKey": tmp_path / "host", "AuthorizedKeysFile": tmp_path / "authorized",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no", "PermitRootLogin": "yes",
    }  # fmt: skip
    (tmp_path / "settings").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    process = subprocess.Popen([program, "-D", "-e", "-f", str(tmp_path / "settings")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield f"ssh -p {port} -i {tmp_path / 'mine'} -o UserKnownHostsFile={tmp_path / 'known'} -o StrictHostKeyChecking=accept-new"
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.mark.slow
def test_machines_by_a_real_ssh(config: Path, tmp_path, server):
    """Two names of this machine, by which it is asked as two: all of it, and exchanges between them."""
    pytest.importorskip("clusters.__main__")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    with socket.create_server(("", 0)) as opened:
        port = opened.getsockname()[1]
    done = started(f"--hosts={hosts}", f"--ssh={server}", f"--config={config}", f"--port={port}", NCCL_DEBUG="WARN")
    verdicts = {
        line[8:].partition(": ")[0] if line[8:].startswith("exchange") else ": ".join(line[8:].split(": ")[:2]): line[
            :7
        ].strip()
        for line in done.stdout.splitlines()
    }
    for host in ("127.0.0.1", "localhost"):
        for name in ("ssh", "clock", "code", "python", "config", "runs shared", "port", "data shapes"):
            assert verdicts.get(f"{host}: {name}") == "ok", (host, name, done.stdout, done.stderr)
        assert f"{host}: runs speed" in verdicts and f"{host}: exchange all-reduce" in verdicts, done.stdout
    for operation in ("all-reduce", "all-to-all"):
        assert verdicts[f"exchange between machines {operation}"] != "FAILED", done.stdout
    assert not list(config.parent.rglob(".doctor-*"))


@pytest.mark.slow
def test_a_machine_with_other_code_is_found_by_a_real_ssh(config: Path, tmp_path, server):
    """The copy is what `cd` leads to on the other machine: a wrapper of ssh goes there instead."""
    pytest.importorskip("clusters.__main__")
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".venv*", ".git", "runs", "data_*", "__pycache__", "docs")
    )
    with (copy / "run" / "folder.py").open("a") as file:
        file.write("# changed\n")
    wrapper = tmp_path / "elsewhere"
    wrapper.write_text(
        f'#!/bin/bash\nthere=$(sed "s|^cd {ROOT} |cd {copy} |" <<<"${{@: -1}}")\nexec {server} "${{@:1:$#-1}}" "$there"\n'
    )
    wrapper.chmod(0o700)
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n")
    done = started("--quick", f"--hosts={hosts}", f"--ssh={wrapper}")
    assert (
        "FAILED  localhost: code: run/folder.py differ from here (needed: the same code) -> git pull" in done.stdout
    ), done.stdout
    assert done.returncode == 1
