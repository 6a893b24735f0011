"""One run at a time in a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from parallel.health import claim as module
from parallel.health.claim import IN_USE, FolderClaim, FolderError
from tests.helpers.places import ROOT

HOLD = """
import pathlib, sys, time
from parallel.health.claim import FolderClaim
FolderClaim(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that takes the folder and says so, or fails."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    process = hold(tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(folder: Path, **other: object) -> None:
    (folder / IN_USE).write_text(json.dumps({"host": "node7", "machine": "another", "pid": 1, "start": "x", **other}))


def test_a_folder_in_use_is_refused_before_anything_is_written(holder, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(FolderError, match=f"is in use by process {holder.pid} on "):
        FolderClaim(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_after_a_kill_it_is_free_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    FolderClaim(tmp_path).release()
    assert time.monotonic() - start < 5 and not list(tmp_path.iterdir())


def test_another_process_under_the_number_of_the_killed_one_does_not_count(tmp_path):
    elsewhere(tmp_path, machine=module.machine(), pid=os.getpid(), created=1.0)
    FolderClaim(tmp_path).release()


def test_a_stopped_process_still_holds_it(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(FolderError, match="is in use"):
        FolderClaim(tmp_path)


def test_on_another_machine_a_sign_of_life_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENT_S", 5.0)
    elsewhere(tmp_path)
    beat = threading.Timer(0.3, lambda: os.utime(tmp_path / IN_USE))
    beat.start()
    with pytest.raises(
        FolderError, match="in use by process 1 on node7: let it end or stop it, or choose another name="
    ):
        FolderClaim(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": "x"}'])
def test_on_another_machine_silence_counts_and_so_does_a_file_that_says_nothing(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "SILENT_S", 0.6)
    elsewhere(tmp_path)
    if content is not None:
        (tmp_path / IN_USE).write_text(content)
    FolderClaim(tmp_path).release()
    assert "waiting up to 1 s for a sign of life" in capsys.readouterr().err


def test_who_was_taken_for_gone_learns_of_it_and_leaves_the_others_file(tmp_path, monkeypatch):
    """As a machine that slept."""
    monkeypatch.setattr(module, "BEAT_S", 0.0)
    first = FolderClaim(tmp_path)
    assert first.beat() is None
    elsewhere(tmp_path)
    assert first.beat() == "process 1 on node7"
    first.release()
    assert json.loads((tmp_path / IN_USE).read_text())["host"] == "node7"


def test_a_file_that_cannot_be_read_now_is_nobody_s(tmp_path, monkeypatch):
    """A network file system that fails for a moment, or a file that is being written."""
    monkeypatch.setattr(module, "BEAT_S", 0.0)
    held = FolderClaim(tmp_path)
    for error in (OSError(116, "Stale file handle"), ValueError("no JSON")):

        def read_text(path, error=error, **options):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", read_text)
            assert held.beat() is None
    assert held.beat() is None


def test_a_clock_that_was_set_makes_nobody_dead(holder, tmp_path, monkeypatch):
    """psutil counts from the time at which the machine started, which moves with its clock."""
    real = psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: real() + 2)
    with pytest.raises(FolderError, match="is in use by process"):
        FolderClaim(tmp_path)


def test_a_holder_of_an_earlier_version_is_known_by_its_clock(holder, tmp_path):
    path = tmp_path / IN_USE
    told = json.loads(path.read_text())
    del told["began"]
    path.write_text(json.dumps(told))
    with pytest.raises(FolderError, match="is in use by process"):
        FolderClaim(tmp_path)


def test_beats_touch_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.0)
    held = FolderClaim(tmp_path)
    os.utime(held.path, (0, 0))
    held.beat()
    assert held.path.stat().st_mtime > 1e9


def test_of_many_that_start_together_over_a_dead_one_one_holds_it(tmp_path):
    elsewhere(tmp_path, machine=module.machine(), pid=os.getpid(), created=1.0)
    processes = [hold(tmp_path) for _ in range(4)]
    try:
        deadline = time.monotonic() + 30
        while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        living = [p for p in processes if p.poll() is None]
        assert len(living) == 1
        assert living[0].stdout is not None and living[0].stdout.readline() == "held\n"
        assert json.loads((tmp_path / IN_USE).read_text())["pid"] == living[0].pid
    finally:
        for process in processes:
            process.kill()


def test_where_there_are_no_links(tmp_path, monkeypatch):
    """As on FAT and some network file systems."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    held = FolderClaim(tmp_path)
    with pytest.raises(FolderError, match="in use"):
        FolderClaim(tmp_path)
    held.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a file in the way", "not allowed"])
def test_a_folder_that_cannot_be_written_is_one_line(kind, tmp_path, monkeypatch):
    if kind == "not allowed":
        monkeypatch.setattr(
            Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    else:
        (tmp_path / "runs").write_text("")
    with pytest.raises(FolderError, match=r"cannot be written: .*; choose another runs="):
        FolderClaim(tmp_path / "runs" / "demo")
