"""Processes that stand for ranks: started together, watched, none left over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from clusters.ranks import Ended, Place, start, wait
from tests.helpers.places import ROOT

RANK_FAILS = "import os, sys, time; time.sleep(60 * (os.environ['RANK'] != '1')); sys.exit(7)"


def test_each_learns_its_place(tmp_path):
    names = "RANK LOCAL_RANK LOCAL_WORLD_SIZE WORLD_SIZE MASTER_ADDR MASTER_PORT"
    code = f"import os, sys; open(sys.argv[1] + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in '{names}'.split()))"
    processes = start(
        ["-c", code, str(tmp_path / "r")], Place(world=6, first=4, here=2, address="10.0.0.1", port=29400)
    )
    assert wait(processes, 10.0) == Ended((0, 0))
    assert (tmp_path / "r4").read_text() == "4 0 2 6 10.0.0.1 29400"
    assert (tmp_path / "r5").read_text() == "5 1 2 6 10.0.0.1 29400"


def test_who_stays_after_a_failure_is_killed():
    begun = time.monotonic()
    ended = wait(start(["-c", RANK_FAILS], Place(3, 0, 3)), 60.0, leave_s=0.5)
    assert ended.codes == (-signal.SIGKILL, 7, -signal.SIGKILL) and ended.hung == {0, 2}
    assert time.monotonic() - begun < 20


def test_who_stays_after_others_are_done_is_killed_later():
    code = "import os, time; time.sleep(60 * (os.environ['RANK'] != '1'))"
    assert wait(start(["-c", code], Place(2, 0, 2)), 0.5).codes == (-signal.SIGKILL, 0)


def test_a_stopped_one_is_ended_too():
    processes = start(["-c", RANK_FAILS], Place(2, 0, 2))
    processes[0].send_signal(signal.SIGSTOP)
    assert wait(processes, 60.0, leave_s=0.3).hung == {0}


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers and death signals are Linux's")
@pytest.mark.parametrize("keeps", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "])
def test_what_a_rank_leaves_in_another_session_is_found_and_ended(keeps):
    """The rank starts a process that leaves its session, and ends; the supervisor finds it all the same."""
    child = f"{keeps}import time; time.sleep(120)"
    rank = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    code = f"""
from clusters.ranks import *
adopt_orphans()
assert wait(start(["-c", {rank!r}], Place(1, 0, 1)), 10.0).codes == (0,)
print(end_left_over(0.5))
import psutil
print([child.status() for child in psutil.Process().children(recursive=True)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    first, second = done.stdout.splitlines()
    assert first.count("(pid ") == 1 and second == "[]", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers and death signals are Linux's")
def test_ranks_get_sigterm_when_the_supervisor_is_killed(tmp_path):
    rank = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text('told'), sys.exit()))
pathlib.Path(sys.argv[2]).touch()
time.sleep(60)
"""
    told, ready = tmp_path / "told", tmp_path / "ready"
    code = f"from clusters.ranks import *; wait(start(['-c', {rank!r}, {str(told)!r}, {str(ready)!r}], Place(1, 0, 1)), 60.0)"
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (rank_process,) = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    supervisor.wait()
    psutil.wait_procs([rank_process], timeout=20)
    assert told.read_text() == "told"


def test_who_failed_first_is_told_and_a_fault_elsewhere_ends_all():
    code = "import os, sys, time; time.sleep(1.5 * (os.environ['RANK'] == '1')); sys.exit(3 + int(os.environ['RANK']))"
    assert wait(start(["-c", code], Place(2, 0, 2)), 60.0) == Ended((3, 4), first=(0,))
    sleeps = start(["-c", "import time; time.sleep(60)"], Place(1, 0, 1))
    assert wait(sleeps, 60.0, on_tick=lambda: True, leave_s=0.3) == Ended((-signal.SIGKILL,), frozenset({0}))
