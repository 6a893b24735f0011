"""A real training that loses a rank, goes on with fewer and then with all again: the losses of the undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.runs import ROOT, environment, losses, records

STEPS = ("steps=30", "micro_batches=4", "save_every=5", "parallel.expert=2", "data.workers=0")
PROGRAM = """
import argparse, sys
from clusters.supervise import add_command
parser = argparse.ArgumentParser()
add_command(parser.add_subparsers())
arguments = parser.parse_args()
sys.exit(arguments.main(arguments))
"""


def supervised(config: Path, *overrides: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "supervise", *options, "--", "train.py", f"--config={config}", *overrides],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def until(found: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=60)[0]
        time.sleep(0.02)


def rank_of(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    return next(child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == str(rank))


def last_step(config: Path, name: str) -> int:
    try:
        return records(config, name)[-1]["step"]
    except (OSError, IndexError, json.JSONDecodeError):  # not there, empty, or its last line is being written
        return 0


@pytest.mark.slow
def test_four_ranks_lose_one_go_on_with_two_and_are_four_again(config: Path):
    """Three ranks do not divide four micro-batches, so two go on."""
    undisturbed = supervised(config, *STEPS, "name=undisturbed", options=("--nproc=4",))
    out = undisturbed.communicate(timeout=600)[0]
    assert undisturbed.returncode == 0, out
    process = supervised(config, *STEPS, "name=lost", options=("--nproc=4", "--return-after=0"))
    until(lambda: last_step(config, "lost") >= 7, process)
    rank_of(process, 3).send_signal(signal.SIGKILL)
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out
    told = [line for line in out.splitlines() if line.startswith("supervise: ")]
    assert told[0] == "supervise: starting 4 of 4 ranks" and told[-1] == "supervise: done"
    assert any("rank 3 ended by SIGKILL; going on from step 5 with 2 of 4 ranks" in line for line in told), told
    assert any("starting all 4 ranks" in line for line in told), told
    worlds = [json.loads(line) for line in (config.parent / "runs" / "lost" / "events.jsonl").read_text().splitlines()]
    print("\n".join(told), [event for event in worlds if event["kind"] in ("start", "resume")])
    pairs = list(zip(losses(config, "lost"), losses(config, "undisturbed"), strict=True))
    assert len(pairs) == 30
    worst = max(abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs for key in b if key.startswith("loss/"))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert worst < 1e-5


@pytest.mark.slow
def test_a_signal_to_the_supervisor_saves_and_its_death_does_too(config: Path):
    """SIGTERM: 85. SIGKILL: the ranks get SIGTERM from the system, so that none goes on alone."""
    process = supervised(config, *STEPS, "steps=500", options=("--nproc=2",))
    until(lambda: last_step(config, "tiny") >= 2, process)
    process.terminate()
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 85 and "supervise: stopped after saving step" in out, out
    stopped = last_step(config, "tiny")
    process = supervised(config, *STEPS, "steps=500", options=("--nproc=2",))
    until(lambda: last_step(config, "tiny") >= stopped + 2, process)
    ranks = psutil.Process(process.pid).children()
    process.kill()
    psutil.wait_procs(ranks, timeout=60)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    newest = json.loads((config.parent / "runs" / "tiny" / "events.jsonl").read_text().splitlines()[-1])
    assert newest["kind"] == "stop"
    process.communicate(timeout=60)


@pytest.mark.slow
def test_what_cannot_be_mended_ends_at_once_and_what_fails_again_is_given_up(config: Path):
    process = supervised(config, *STEPS, "data.tasks.shapes.path=/nowhere", options=("--nproc=2",))
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 2 and out.count("starting 2 of 2 ranks") == 1 and "/nowhere" in out, out
    sabotage = ROOT / "tests" / "helpers" / "sabotage.py"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "supervise", "--attempts=2", "--", str(sabotage), f"--config={config}", "steps=4", "save_every=9",
         "data.workers=0"],
        cwd=ROOT, env=environment() | {"SABOTAGE": "raise:0:2", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and out.count("starting 1 of 1 ranks") == 2, out
    assert "given up: failed 2 times without a new checkpoint (the newest is none: from the beginning)" in out
    assert not list((config.parent / "runs" / "tiny").glob("checkpoints/*"))
