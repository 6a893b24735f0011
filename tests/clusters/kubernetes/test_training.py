"""Real trainings under the entry of a container: two nodes on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.clusters.kubernetes.test_ranks import ended, free_port, started, until
from tests.helpers.places import ROOT
from tests.helpers.runs import environment, losses, train

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def nodes(config: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    words = (str(ROOT / "train.py"), f"--config={config}", "data.workers=0", *overrides)
    return [started(node, 2, port, *words, folder=config.parent) for node in (0, 1)]


def test_a_pod_that_is_told_to_stop_stops_both_and_the_run_goes_on_as_if_nothing_had_been(config: Path):
    train(config, "steps=12", "name=undisturbed", "data.workers=0", ranks=2)
    first, second = nodes(config, "steps=12")
    until(first, "step 3/")
    second.send_signal(signal.SIGTERM)  # a node is drained: its pod alone is told
    found = [ended(node, 240) for node in (first, second)]
    assert [code for code, _ in found] == [85, 85], found
    assert "saved step_" in found[0][1]
    found = [ended(node, 240) for node in nodes(config, "steps=12")]
    assert [code for code, _ in found] == [0, 0], found
    assert losses(config) == losses(config, "undisturbed")


def test_a_rank_that_is_killed_ends_all_nodes_with_codes_that_restart(config: Path):
    first, second = nodes(config, "steps=500")
    until(first, "step 4/")
    (rank,) = [p for p in psutil.Process(second.pid).children() if "train.py" in " ".join(p.cmdline())]
    os.kill(rank.pid, signal.SIGKILL)
    code, out = ended(second, 240)
    assert code == 137, out
    code, out = ended(first, 240)
    assert code == 1, out
    found = [ended(node, 240) for node in nodes(config, "steps=6")]
    assert [code for code, _ in found] == [0, 0], found


def test_what_a_user_must_mend_ends_with_2(config: Path):
    found = [ended(node, 240) for node in nodes(config, "data.tasks.shapes.path=/nowhere")]
    assert [code for code, _ in found] == [2, 2], found
