"""Notes of ranks, and the report of a stall. Whole runs that fail: tests/parallel/health/test_failures.py."""

from __future__ import annotations

import json
import time

import pytest

from parallel.health import watchdog as module
from parallel.health.failures import is_lost_connection
from parallel.health.notes import Notes
from parallel.health.watchdog import Watchdog, where_ranks_are
from run.config_file import load_config
from run.errors import ConfigError


def note(step: int, phase: str, lasted_s: float) -> dict:
    return {"host": "a", "pid": 7, "step": step, "phase": phase, "lasted_s": lasted_s}


def test_notes_of_another_start_do_not_count(tmp_path):
    Notes(tmp_path, "old", 1).write({"error": "x"})
    notes = Notes(tmp_path, "new", 0)
    notes.write({"error": "y"})
    assert notes.ranks() == {0, 1}
    assert notes.read() == {0: {"rank": 0, "start": "new", "error": "y"}}
    notes.path(2).write_text("{ half a no")
    assert notes.read().keys() == {0}
    notes.remove_all()
    assert notes.ranks() == set()


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    notes = Notes(tmp_path / "file" / "folder", "s", 0)
    assert not notes.write({})
    assert notes.read() == {}
    notes.remove()
    notes.remove_all()


def test_the_earliest_place_comes_first(tmp_path):
    for rank in (0, 1, 2, 4):
        Notes(tmp_path, "s", rank).write(note(12, "reduce", 600.0 + rank))
    Notes(tmp_path, "s", 3).write(note(12, "data", 612.4))
    Notes(tmp_path, "s", 5).write(note(11, "save", 20.0))
    assert where_ranks_are(Notes(tmp_path, "s", 0)) == [
        "step 11, save: rank 5, for 20 s (pid 7 on a)",
        "step 12, data: rank 3, for 612 s (pid 7 on a)",
        "step 12, reduce: ranks 0-2, 4, for 600 s and more",
    ]


def test_a_stall_is_reported_once_a_phase(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "TICK_S", 0.02)
    watchdog = Watchdog(Notes(tmp_path, "s", 0), stall_s=0.1)
    watchdog.start()
    watchdog.phase("data", 3)
    time.sleep(0.5)
    report = capfd.readouterr().err
    assert report.count("rank 0 has been in data of step 3") == 1
    assert "test_a_stall_is_reported_once_a_phase" in report, "its own stack"
    assert "test_watchdog.py" in (tmp_path / "stacks_rank_00000.txt").read_text()
    assert json.loads((tmp_path / "rank_00000.json").read_text())["phase"] == "data"
    watchdog.phase("forward")
    time.sleep(0.5)
    assert capfd.readouterr().err.count("rank 0 has been in forward of step 3") == 1
    watchdog.close()
    assert not (tmp_path / "rank_00000.json").exists()


def test_the_report_comes_before_the_timeout(config):
    with pytest.raises(ConfigError, match="stall_s=600 and timeout_s=60"):
        load_config(config, ["parallel.timeout_s=60"])
    assert load_config(config, ["parallel.timeout_s=60", "parallel.stall_s=0"]).parallel.stall_s == 0


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete", True),
        ("NCCL error, ncclRemoteError: A call failed possibly due to a network error", True),
        ("NCCL error, ncclInvalidUsage: Duplicate GPU detected", False),
        ("Connection reset by peer", False),  # of a data store
    ],
)
def test_what_counts_as_a_lost_connection(text, lost):
    assert is_lost_connection(RuntimeError(text)) is lost
