"""Two "nodes": two instances of the launcher on this machine, each starting one rank of one run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.runs import LAUNCHER, ROOT, environment, losses, records, train


@pytest.mark.slow
def test_two_launchers_are_one_run(config: Path, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node-a slots=1\nnode-b slots=1\n")
    port = 29900 + os.getpid() % 90
    processes = [
        subprocess.Popen(
            [str(LAUNCHER), f"--hostfile={hosts}", "--no_ssh", f"--node_rank={rank}", "--master_addr=127.0.0.1",
             f"--master_port={port}", str(ROOT / "train.py"), f"--config={config}", "name=nodes", "parallel.expert=2"],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 rank(s)" in outputs[0] and "finished at step 6" in outputs[0]
    train(config, "name=one")
    for two, one in zip(losses(config, "nodes"), losses(config, "one"), strict=True):
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=2e-3), key


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
