"""Ways to start ranks: two instances of the launcher as two nodes, torchrun, srun, machines of their own network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parallel.launch import accept_slurm
from tests.helpers.runs import LAUNCHER, ROOT, environment, losses, records, train


def start_node(
    rank: int, hosts: Path, address: str, port: int, *words: str, within: tuple[str, ...] = (), **environ: str
) -> subprocess.Popen:
    """The launcher of one node, which starts one rank; `within`: a command that runs it elsewhere."""
    return subprocess.Popen(
        [*within, str(LAUNCHER), f"--hostfile={hosts}", "--no_ssh", f"--node_rank={rank}", f"--master_addr={address}",
         f"--master_port={port}", *words],
        cwd=ROOT, env=environment() | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def assert_one_run(config: Path, name: str, processes: list[subprocess.Popen]) -> None:
    """Two nodes ended well, with the losses of one process."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "ranks       2 (cpu)" in outputs[0] and "finished at step 6" in outputs[0]
    train(config, "name=one")
    for two, one in zip(losses(config, name), losses(config, "one"), strict=True):
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=2e-3), key


@pytest.mark.slow
def test_two_launchers_are_one_run(config: Path, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n")
    words = [str(ROOT / "train.py"), f"--config={config}", "name=nodes", "parallel.expert=2"]
    port = 29900 + os.getpid() % 90
    assert_one_run(config, "nodes", [start_node(rank, hosts, "127.0.0.1", port, *words) for rank in range(2)])


@pytest.mark.slow
def test_torchrun_starts_ranks_too(config: Path):
    torchrun = LAUNCHER.with_name("torchrun")
    done = subprocess.run(
        [str(torchrun), "--nproc-per-node=2", f"--master-port={29990 + os.getpid() % 9}", str(ROOT / "train.py"),
         f"--config={config}", "name=torchrun", "parallel.expert=2", "steps=3"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [record["step"] for record in records(config, "torchrun")] == [1, 2, 3]


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NODELIST": "localhost,gpu[07-09]",
    "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1",
}


@pytest.mark.slow
def test_srun_starts_ranks_too(config: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), f"--config={config}", "parallel.expert=2", "steps=3"],
            cwd=ROOT, env=environment() | SLURM | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "ranks       2 (cpu)" in outputs[0] and "finished at step 3" in outputs[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "26041"}),
        ({"SLURM_NODELIST": "gpu[07-09,12],a"}, {"MASTER_ADDR": "gpu07"}),
        ({"SLURM_NODELIST": ""}, {"MASTER_ADDR": "192.0.2.1"}),
        ({"MASTER_ADDR": "here", "MASTER_PORT": "1"}, {"MASTER_ADDR": "here", "MASTER_PORT": "1"}),
        ({"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": None}),  # another launcher inside the job
        ({"SLURM_STEP_ID": None}, {"RANK": None, "WORLD_SIZE": None}),  # the batch script itself, one process
    ],
)
def test_names_of_srun(changed, expected, monkeypatch):
    # 15,000 + (31 x 4,711 + 0) mod 15,000 = 15,000 + 146,041 - 135,000
    everything = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")) | SLURM
    environ = everything | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"} | changed
    monkeypatch.setattr(os, "environ", {key: value for key, value in environ.items() if value is not None})
    accept_slurm()
    assert {key: os.environ.get(key) for key in expected} == expected


@pytest.fixture
def two_machines():
    """Two network namespaces joined by a cable: {name: address}. What a process of one binds, the other cannot see."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need `ip` of iproute2")
    machines = {f"guard{os.getpid()}{side}": f"10.209.47.{index + 1}" for index, side in enumerate("ab")}
    left, right = machines
    try:
        for name in machines:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", left, "type", "veth", "peer", "name", "cable", "netns", right)
        for name, address in machines.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield machines
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are refused here: {error.stderr.strip()}")
    finally:
        for name in machines:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def start_on(
    machines: dict[str, str], hosts: Path, script: Path, *words: str, **environ: str
) -> list[subprocess.Popen]:
    """A launcher on each machine, one rank each."""
    hosts.write_text("".join(f"{name} slots=1\n" for name in machines))
    address = next(iter(machines.values()))
    environ |= {"GLOO_SOCKET_IFNAME": "cable", "PYTHONPATH": str(ROOT)}
    return [
        start_node(rank, hosts, address, 29500, str(script), *words, within=("ip", "netns", "exec", name), **environ)
        for rank, name in enumerate(machines)
    ]


@pytest.mark.slow
def test_two_machines_with_a_cable_are_one_run(config: Path, tmp_path, two_machines):
    words = [f"--config={config}", "name=cable", "parallel.expert=2"]
    assert_one_run(config, "cable", start_on(two_machines, tmp_path / "hosts", ROOT / "train.py", *words))


@pytest.mark.slow
def test_a_failure_ends_the_other_machine_too(config: Path, tmp_path, two_machines):
    """Each launcher sees its own rank alone: rank 0 hangs in a collective and learns of the failure from the run folder."""
    words = [f"--config={config}", "parallel.expert=2"]
    script = ROOT / "tests" / "helpers" / "sabotage.py"
    processes = start_on(two_machines, tmp_path / "hosts", script, *words, SABOTAGE="raise:1:2")
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    assert "rank 0 stopped: rank 1 failed first at step 2 (backward): SabotageError: on purpose; see" in outputs[0]
    assert "Traceback" not in outputs[0] and "rank 1 failed first at step 2 (backward)\nTraceback" in outputs[1]
