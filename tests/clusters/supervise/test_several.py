"""Two machines under torchrun's agent, here two supervisors on one: one is lost, and comes back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from clusters.ranks import free_port
from tests.clusters.supervise.test_elastic import last_step, supervised, until
from tests.helpers.runs import losses

WORDS = ("micro_batches=4", "data.workers=0", "save_every=20", "parallel.expert=1")


def worlds(config: Path) -> list[int]:
    """Data ranks of each start."""
    path = config.parent / "runs" / "tiny" / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event["ranks"]["data"] for event in events if event["kind"] in ("start", "resume")]


def machine(config: Path, port: int, steps: int) -> subprocess.Popen[str]:
    options = ("--nproc=1", "--nnodes=1:2", f"--rendezvous=127.0.0.1:{port}")
    return supervised(config, *WORDS, f"steps={steps}", options=options)


@pytest.mark.slow
def test_a_machine_is_lost_and_comes_back(config: Path):
    """Its supervisor, its agent and its rank are killed as a power failure would; the other goes on alone, and is joined again."""
    port, steps = free_port(), 2000
    first, second = machine(config, port, steps), machine(config, port, steps)
    until(lambda: last_step(config, "tiny") >= 25, first)
    assert worlds(config) == [2]
    for process in (psutil.Process(second.pid), *psutil.Process(second.pid).children(recursive=True)):
        process.kill()
    until(lambda: worlds(config) == [2, 1] and last_step(config, "tiny") >= 30, first)
    third = machine(config, port, steps)
    until(lambda: worlds(config) == [2, 1, 2], first)
    stopped = last_step(config, "tiny")
    until(lambda: last_step(config, "tiny") > stopped + 3, first)
    first.terminate()
    outputs = [process.communicate(timeout=180)[0] for process in (first, third)]
    assert [process.returncode for process in (first, third)] == [85, 85], outputs
    assert "starting 2 ranks on 2 machines from step" in outputs[0] + outputs[1]
    second.communicate(timeout=60)
    done = losses(config)[:40]
    alone = supervised(config, *WORDS, f"steps={steps}", "name=alone")
    until(lambda: last_step(config, "alone") >= 45, alone)
    alone.terminate()
    alone.communicate(timeout=120)
    pairs = zip(done, losses(config, "alone")[:40], strict=True)
    assert max(abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs for key in b if key.startswith("loss/")) < 1e-5


@pytest.mark.slow
def test_what_cannot_be_mended_ends_both_machines(config: Path):
    port = free_port()
    machines = [machine(config, port, 10) for _ in range(2)]
    # The path is looked at by each rank, after the supervisor has read the configuration.
    outputs = [process.communicate(timeout=400)[0] for process in machines]
    assert [process.returncode for process in machines] == [0, 0], outputs
    machines = [
        supervised(
            config, *WORDS, "steps=10", "data.tasks.shapes.path=/nowhere", "name=bad",
            options=("--nproc=1", "--nnodes=2", f"--rendezvous=127.0.0.1:{port}"),
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=400)[0] for process in machines]
    assert [process.returncode for process in machines] == [2, 2] and "/nowhere" in outputs[0], outputs
