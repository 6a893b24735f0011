"""A training beside which its run is uploaded is killed; another machine, which has the store alone, goes on. Losses are those of a run
that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from clusters.ranks import free_port
from tests.clusters.store.made import Server, command, environment, program
from tests.helpers.runs import ROOT, losses, train
from tests.helpers.runs import command as train_command
from tests.helpers.runs import environment as train_environment

STEPS = ("steps=12", "save_every=3", "data.workers=1", "threads=1")


def follower(run: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        program("upload", "--run", run, "--to", url, "--follow", "--every", 0.5, "--wait", 60),
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def moved(config: Path, place: Path) -> Path:
    """The same configuration with other folders, as on another machine."""
    place.mkdir()
    raw = yaml.safe_load(config.read_text()) | {"runs": str(place / "runs")}
    path = place / config.name
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.slow
def test_another_machine_goes_on_from_the_store(s3, config, tmp_path):
    undisturbed = moved(config, tmp_path / "undisturbed")
    train(undisturbed, *STEPS)
    run, url = config.parent / "runs" / "tiny", f"{s3}/runs/tiny"
    beside = follower(run, url)
    training = subprocess.Popen(
        train_command(config, *STEPS), cwd=ROOT, env=train_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert training.stdout is not None and beside.stdout is not None
    for line in training.stdout:
        if line.startswith("step 8/"):
            training.send_signal(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    said = beside.stdout.read()
    assert beside.wait(timeout=60) == 0 and "uploaded step_00000006" in said, said
    shutil.rmtree(run)

    elsewhere = moved(config, tmp_path / "elsewhere")
    assert command("download", "--from", url, "--run", elsewhere.parent / "runs" / "tiny") == 0
    assert "step 12" in train(elsewhere, *STEPS)
    assert losses(elsewhere) == losses(undisturbed) and len(losses(elsewhere)) == 12
    assert command("upload", "--run", elsewhere.parent / "runs" / "tiny", "--to", url) == 0


@pytest.mark.slow
def test_a_store_that_dies_does_not_hold_up_the_training(config, tmp_path, monkeypatch):
    """It comes back, empty, after the training has ended."""
    port = free_port()
    server = Server(port)
    for key, value in environment(server).items():
        monkeypatch.setenv(key, value)
    run, url = config.parent / "runs" / "tiny", "s3://bucket/runs/tiny"
    beside = follower(run, url)
    time.sleep(3)
    server.close()
    train(config, *STEPS[1:], "steps=6")
    assert beside.poll() is None and beside.stdout is not None
    said = ""
    while "tried again" not in said:  # the store is away until it has been missed
        line = beside.stdout.readline()
        assert line, said
        said += line
    server = Server(port)
    try:
        said += beside.stdout.read()
        assert beside.wait(timeout=90) == 0, said
        assert "uploaded step_00000006" in said and "the training goes on, and the upload is tried again" in said
        assert command("download", "--from", url, "--run", tmp_path / "new") == 0
    finally:
        server.close()
