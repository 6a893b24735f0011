"""What control groups and nvidia-smi say, where nothing is wrong."""

from __future__ import annotations

import pytest

from clusters.doctor.machine import cgroup_cores, cgroup_memory, check_links, check_threads


def test_control_groups_of_version_1(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job/7\n1:cpu,cpuacct:/\n0::/\n")
    memory, cores = tmp_path / "sys/fs/cgroup/memory/job/7", tmp_path / "sys/fs/cgroup/cpu"
    for folder in (memory, cores):
        folder.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text("4000\n")
    (memory / "memory.usage_in_bytes").write_text("3000\n")
    (memory / "memory.stat").write_text("cache 1000\ntotal_inactive_file 500\n")
    (cores / "cpu.cfs_quota_us").write_text("250000\n")
    (cores / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_memory(tmp_path) == (4000.0, 2500.0)
    assert cgroup_cores(tmp_path) == 2.5


def test_without_limits(tmp_path):
    assert cgroup_cores(tmp_path) == float("inf") and cgroup_memory(tmp_path) == (float("inf"), 0.0)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert cgroup_cores(tmp_path) == float("inf") and cgroup_memory(tmp_path)[0] == float("inf")


TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\x1b[0m
GPU0\t X \tNV12\t{way}\tSYS\t0-7
GPU1\tNV12\t X \tNV12\tSYS\t0-7
GPU2\t{way}\tNV12\t X \tSYS\t0-7
NIC0\tSYS\tSYS\tSYS\t X
"""


@pytest.mark.parametrize(
    ("way", "verdict", "found"),
    [
        ("NV12", "ok", "NV at worst between GPUs"),  # the network card's column does not count
        ("PHB", "ok", "PHB at worst between GPUs"),
        ("NODE", "warning", "NODE between some GPUs"),
    ],
)
def test_the_worst_link_between_gpus(way, verdict, found):
    finding = check_links(TOPOLOGY.format(way=way))
    assert (finding.verdict, finding.found) == (verdict, found)


def test_what_nvidia_smi_does_not_tell():
    assert check_links("").verdict == "warning"


def test_threads_that_fit(monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert check_threads(2, threads=4, root=tmp_path)[0].verdict == "ok"
    # left to torch, each rank takes all 8
    assert check_threads(2, root=tmp_path)[0].needed == "4 a rank"
