"""Problems that are planted, each of which is found and comes with its remedy."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters.doctor import data, disks, launcher, machine, network, packages
from clusters.doctor.checks import Check, answered
from clusters.doctor.finding import Finding
from parallel.health.preflight import BUILT_AT_START
from run.config_file import load_config
from tests.helpers.limits import within
from tests.helpers.places import ROOT
from tests.helpers.shard_server import serving

CONSTRAINTS = "click==8.5.1\n"
PROJECT = '[project]\nrequires-python = ">=3.11"\ndependencies = ["numpy==2.4.6", "not-there==1.0"]\n'
Plant = Callable[[Path, pytest.MonkeyPatch], contextlib.AbstractContextManager[Callable[[], list[Finding]]]]
PLANTS: dict[str, tuple[str, str, str, Plant]] = {}
"""By what is wrong: name and verdict of the finding, a part of its line, and what plants it."""


def plant(name: str, verdict: str, said: str) -> Callable[[Callable[..., Iterator]], Callable]:
    def add(function: Callable[..., Iterator]) -> Callable:
        PLANTS[function.__name__] = (name, verdict, said, contextlib.contextmanager(function))
        return function

    return add


@plant("port", "FAILED", "-> choose another with deepspeed --master_port=")
def port_taken(tmp_path, monkeypatch):
    with socket.create_server(("", 0)) as server:
        yield lambda: network.check_port(server.getsockname()[1])


@plant("gloo interface", "FAILED", "GLOO_SOCKET_IFNAME=lo,eth99: no network interface eth99 is up on")
def gloo_interface_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth99")
    yield network.check_sockets


@plant("nccl interface", "FAILED", "that the other machines reach, or unset it")
def nccl_interface_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=ib0")
    yield network.check_sockets


def leads_to(monkeypatch, address: str) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(socket.AF_INET, 1, 0, "", (address, 0))])


@plant(
    "hostname", "FAILED", "gpu1 is 127.0.1.1 (needed: an address that other machines reach) -> in /etc/hosts give gpu1"
)
def hostname_is_the_loopback(tmp_path, monkeypatch):
    leads_to(monkeypatch, "127.0.1.1")
    yield lambda: network.check_hostname(is_one_of_many=True, name="gpu1")


@plant("hostname", "FAILED", "gpu1 is 203.0.113.9 (needed: an address of this machine)")
def hostname_is_another_machine(tmp_path, monkeypatch):
    leads_to(monkeypatch, "203.0.113.9")
    yield lambda: network.check_hostname(is_one_of_many=True, name="gpu1")


def made_pins(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text(CONSTRAINTS)
    return tmp_path


@plant("package numpy", "FAILED", "package numpy: 1.26.0 (needed: 2.4.6) -> pip install numpy==2.4.6")
def a_direct_package_in_another_version(tmp_path, monkeypatch):
    yield lambda: packages.check_packages(made_pins(tmp_path), {"numpy": "1.26.0", "not-there": "1.0"})


@plant("package not-there", "FAILED", "not installed (needed: 1.0)")
def a_package_missing(tmp_path, monkeypatch):
    yield lambda: packages.check_packages(made_pins(tmp_path))


@plant("package click", "warning", "-> pip install click==8.5.1")
def what_a_package_pulls_in_in_another_version(tmp_path, monkeypatch):
    yield lambda: packages.check_packages(made_pins(tmp_path), {"numpy": "2.4.6", "not-there": "1.0", "click": "7"})


@plant("python", "FAILED", "(needed: >=4.2)")
def python_too_old(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace("3.11", "4.2"))
    yield lambda: packages.check_python(tmp_path)


@plant("ops", "FAILED", "-> remove it (rm ")
def stale_build_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("parallel.health.preflight._is_prebuilt", lambda op: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / BUILT_AT_START).mkdir()
    (tmp_path / BUILT_AT_START / "lock").touch()
    yield packages.check_ops


@plant("ops", "FAILED", "DeepSpeed's were built for torch 2.4")
def ops_of_another_torch(tmp_path, monkeypatch):
    monkeypatch.setattr("clusters.doctor.packages.check_build_lock", lambda: None)
    noted = "installed_ops={'deepspeed_shm_comm': 1}\ntorch_info={'version': '2.4'}\nversion='0.1'\n"
    (tmp_path / "git_version_info_installed.py").write_text(noted)
    yield lambda: packages.check_ops(tmp_path)


@contextlib.contextmanager
def soft_limit(which: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY and value > hard:
        pytest.skip(f"this process may not raise the limit above {hard}")
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


@plant("open files", "FAILED", "512 files (needed: 4,096 files) -> ulimit -n 4096")
def too_few_open_files(tmp_path, monkeypatch):
    with soft_limit(resource.RLIMIT_NOFILE, 512):
        yield machine.check_limits


@plant("core files", "warning", "-> ulimit -c 0")
def core_files_are_written(tmp_path, monkeypatch):
    with soft_limit(resource.RLIMIT_CORE, 1 << 20):
        yield machine.check_limits


@plant("locked memory", "FAILED", "0.00781 GiB beside mlx5_0 (needed: unlimited) -> memlock unlimited")
def locked_memory_beside_infiniband(tmp_path, monkeypatch):
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    with soft_limit(resource.RLIMIT_MEMLOCK, 8 << 20):  # 8 MiB = 0.0078 GiB
        yield lambda: machine.check_limits(tmp_path)


def control_group(root: Path, **files: str) -> Path:
    """Version 2, the limits at the group above the process' own."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/job_7/step_0\n")
    (root / "sys/fs/cgroup/job_7/step_0").mkdir(parents=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup/job_7" / name.replace("_", ".")).write_text(text)
    return root


@plant("memory", "FAILED", "1.5 GiB free (needed: 8 GiB free) ->")
def memory_of_the_control_group(tmp_path, monkeypatch):
    # 2 GiB, of which 1 GiB is used, and half of that is cache
    root = control_group(
        tmp_path, memory_max="2147483648", memory_current="1073741824", memory_stat="inactive_file 536870912"
    )
    yield lambda: machine.check_memory(2, root)


@plant("threads", "warning", "2 rank(s) of 8 on 1.5 cores (needed: 1 a rank) -> export OMP_NUM_THREADS=1")
def threads_above_the_quota(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    root = control_group(tmp_path, cpu_max="150000 100000")
    yield lambda: machine.check_threads(2, 0, root)


@plant("threads", "FAILED", "OMP_NUM_THREADS=all (needed: a number)")
def threads_that_are_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "all")
    yield lambda: machine.check_threads(1)


@plant("TMPDIR", "FAILED", "is too long for the sockets of worker processes")
def tmpdir_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * 80)
    yield machine.check_tmpdir


@plant("locale", "FAILED", "-> set PYTHONUTF8=1")
def locale_without_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    yield machine.check_encoding


@contextlib.contextmanager
def tiny_tmpfs(place: Path) -> Iterator[Path]:
    """1 MiB; real, so that what is measured is a disk that is full."""
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no rights to mount a tmpfs here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@plant("shared memory", "FAILED", "0.000977 GiB free (needed: 2 GiB free) -> docker run --shm-size=4g")
def shared_memory_of_a_container(tmp_path, monkeypatch):
    with tiny_tmpfs(tmp_path / "dev/shm"):
        yield lambda: machine.check_shared_memory(2, tmp_path)


@plant("runs room", "FAILED", "-> make room in ")
def no_room_for_checkpoints(tmp_path, monkeypatch):
    with tiny_tmpfs(tmp_path / "full") as place:
        yield lambda: disks.check_room("runs", place / "runs", 3.0, "checkpoints")


@plant("runs speed", "FAILED", "No space left on device")
def a_disk_that_is_full(tmp_path, monkeypatch):
    with tiny_tmpfs(tmp_path / "full") as place:
        yield lambda: disks.check_speed("runs", place, 8 << 20)


@plant("runs folder", "FAILED", "is a file (needed: a folder)")
def runs_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("")
    yield lambda: disks.check_room("runs", tmp_path / "runs", 0.0, "")


@plant("runs speed", "warning", "(needed: 1e+12 MB/s) -> choose a faster disk")
def a_slow_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "SLOW_MB_PER_S", 1e12)
    yield lambda: disks.check_speed("runs", tmp_path, 4 << 20)


@plant("runs clock", "FAILED", "s off that of this machine (needed: less than 2 s) -> set the clock of the file server")
def a_file_server_five_minutes_late(tmp_path, monkeypatch):
    yield lambda: disks.check_file_clock("runs", tmp_path, time.time() + 300)


@plant("runs shared", "FAILED", "-> put runs= on a file system that all machines mount")
def runs_is_not_shared(tmp_path, monkeypatch):
    with disks.placed_marker(tmp_path) as marker:
        assert marker is not None and disks.check_marker(marker)[0].verdict == "ok"
    yield lambda: disks.check_marker(marker)


def environment_file(tmp_path: Path, line: str, mode: int = 0o600) -> Callable[[], list[Finding]]:
    path = tmp_path / ".deepspeed_env"
    path.write_text(f"NCCL_DEBUG=INFO\n{line}\n")
    path.chmod(mode)
    return lambda: launcher.check_environment_file(path)


@plant(".deepspeed_env", "FAILED", ".deepspeed_env:2 is a comment (needed: NAME=VALUE) -> remove the line")
def a_comment_for_deepspeed(tmp_path, monkeypatch):
    yield environment_file(tmp_path, "# interfaces: NCCL_SOCKET_IFNAME=ib0")


@plant(".deepspeed_env", "FAILED", "without export")
def an_export_for_deepspeed(tmp_path, monkeypatch):
    yield environment_file(tmp_path, "export NCCL_SOCKET_IFNAME=ib0")


@plant(".deepspeed_env", "FAILED", "WANDB_API_KEY would be seen in the list of processes (needed: no secrets)")
def a_secret_for_deepspeed(tmp_path, monkeypatch):
    yield environment_file(tmp_path, "WANDB_API_KEY=hush")


@plant(".deepspeed_env", "warning", "-> write what it stands for")
def a_variable_of_the_shell_for_deepspeed(tmp_path, monkeypatch):
    yield environment_file(tmp_path, "HF_HOME=$HOME/cache")


@plant(".deepspeed_env", "FAILED", "-> chmod 600 ")
def an_environment_that_others_may_write(tmp_path, monkeypatch):
    yield environment_file(tmp_path, "UCX_TLS=tcp", 0o666)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@plant("devices", "FAILED", "sees none of 2 GPUs (needed: GPUs) ->")
def gpus_that_torch_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    script(tmp_path / "bin/nvidia-smi", "echo 'GPU 0: A'; echo 'GPU 1: A'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield lambda: machine.check_devices(1)


@plant("devices", "FAILED", "2 x A100 (needed: 4 for as many ranks)")
def more_ranks_than_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: "A100")
    yield lambda: machine.check_devices(4)


@plant("links", "warning", "SYS between some GPUs (needed: NVLink or one PCIe switch)")
def gpus_on_two_sockets(tmp_path, monkeypatch):
    topology = "        GPU0    GPU1    CPU Affinity\nGPU0     X      SYS     0-7\nGPU1    SYS      X      8-15\n"
    yield lambda: [machine.check_links(topology)]


@plant("config", "FAILED", "stepz")
def a_misspelt_key(tmp_path, monkeypatch):
    yield lambda: data.check_config("configs/demo.yaml", ["stepz=3"], 0)[1]


@plant("config", "FAILED", "parallel.expert=3 does not divide")
def a_layout_that_does_not_fit_the_machines(tmp_path, monkeypatch):
    yield lambda: data.check_config("configs/demo.yaml", ["parallel.expert=3"], 4)[1]


def of_shapes(*overrides: str) -> list[Finding]:
    return data.check_task(load_config("configs/demo.yaml", overrides), 0)


@plant("data shapes", "FAILED", "/nowhere/dataset.json: No such file or directory -> mend the place")
def a_data_set_that_is_not_there(tmp_path, monkeypatch):
    yield lambda: of_shapes("data.tasks.shapes.path=/nowhere")


@plant("data shapes", "FAILED", "2 of 2 shards cannot be read, as ")
def shards_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "dataset.json").write_text("{}")
    yield lambda: of_shapes(
        f"data.tasks.shapes.path={tmp_path}", f"data.tasks.shapes.shards=['{tmp_path}/{{0..1}}.tar']"
    )


@plant("data shapes", "FAILED", "a-1.tar: HTTP 404")
def a_server_that_lost_its_shards(tmp_path, monkeypatch):
    (tmp_path / "dataset.json").write_text("{}")
    with serving() as server:
        yield lambda: of_shapes(
            f"data.tasks.shapes.path={tmp_path}", f"data.tasks.shapes.shards=['{server.url}/a-1.tar']"
        )


@plant("data shapes", "FAILED", "ConnectionRefusedError")
def a_server_that_is_down(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield lambda: of_shapes(f"data.tasks.shapes.path=http://127.0.0.1:{port}/shapes")


@plant("memory", "FAILED", "no answer in 0.1 s -> look for a file server")
def a_check_that_never_ends(tmp_path, monkeypatch):
    def ask() -> list[Finding]:
        time.sleep(3)
        return []

    with within(2):
        yield lambda: answered(Check("memory", ask, 0.1))


@pytest.mark.parametrize("what", PLANTS)
def test_a_planted_problem_is_found_with_its_remedy(what, tmp_path, monkeypatch):
    name, verdict, said, function = PLANTS[what]
    with function(tmp_path, monkeypatch) as check:
        findings = [finding for finding in check() if finding.name == name]
    assert [finding.verdict for finding in findings] == [verdict], findings
    assert said in findings[0].line() and findings[0].remedy, findings[0].line()


def test_every_check_stands_in_the_documentation():
    page = (ROOT / "docs" / "clusters.md").read_text()
    checks = {cell.strip() for row in page.split("## What is checked")[1].split("\n## ")[0].splitlines() if row.startswith("|")
              for cell in row.split("|")[1].split(",")}  # fmt: skip
    for name, *_ in PLANTS.values():
        words = {"package": "package NAME", "data": "data TASK"}
        assert words.get(name.partition(" ")[0], name) in checks, name
