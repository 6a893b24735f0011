"""Each kind of fault does what its name says, to a small process in place of a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from scripts.faults.faults import PHASES, Fault
from scripts.faults.kinds import JUMP_S, Stage
from scripts.faults.launching import Started, Trial, _started, wait_for_end
from scripts.faults.table import KINDS, missing

WAITS = "import time; time.sleep(60)"


def needs(*kinds: str) -> pytest.MarkDecorator:
    reasons = [f"{kind}: {missing(kind)}" for kind in kinds if missing(kind)]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


def fault(kind: str, rank: int = 0) -> Fault:
    return Fault(number=0, kind=kind, phase=PHASES[kind][0], step=2, rank=rank, delay_s=0.0, save_async=False)


def stand_ins(folder: Path, code: str = WAITS, **environment: str) -> Started:
    """Two processes in place of ranks, which run."""
    trial = Trial(folder, str(folder), environment)
    program = f"open('ready_' + __import__('os').environ['RANK'], 'w').close(); {code}"
    started = _started(
        trial,
        [[sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {program}"]] * 2,
        [{"RANK": "0"}, {"RANK": "1"}],
    )
    deadline = time.monotonic() + 30
    while not all((folder / f"ready_{rank}").exists() for rank in range(2)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return started


def codes(started: Started) -> list[int]:
    return [process.wait(timeout=30) for process in started.processes]


def end(started: Started) -> None:
    for process in started.processes:
        process.kill()
    wait_for_end(started, 10.0)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("kill one rank", [0, -signal.SIGKILL]),
        ("kill all ranks", [-signal.SIGKILL, -signal.SIGKILL]),
        ("terminate one rank", [0, -signal.SIGTERM]),
        ("terminate all ranks", [-signal.SIGTERM, -signal.SIGTERM]),
    ],
)
def test_signals_reach_the_ranks_that_are_meant(kind, wanted, tmp_path):
    started = stand_ins(tmp_path, "import time; time.sleep(2)")
    with KINDS[kind](fault(kind, rank=1), tmp_path) as stage:
        stage.act(started)
    assert codes(started) == wanted


def test_a_stopped_rank_lives_and_does_nothing(tmp_path):
    started = stand_ins(tmp_path)
    with KINDS["stop one rank"](fault("stop one rank", rank=1), tmp_path) as stage:
        stage.act(started)
    time.sleep(0.2)
    assert [started.ranks[rank].status() for rank in (0, 1)] == ["sleeping", "stopped"]
    end(started)


@needs("full disk")
def test_a_full_disk_takes_nothing_until_it_is_mended(tmp_path):
    with KINDS["full disk"](fault("full disk"), tmp_path) as stage:
        assert stage.disk is not None
        (stage.disk / "before").write_text("kept")
        stage.act(Started(Trial(tmp_path, "", {}), ()))
        with pytest.raises(OSError, match="No space left on device"):
            (stage.disk / "file").write_bytes(bytes(1 << 20))
        stage.mend()
        (stage.disk / "file").write_bytes(bytes(1 << 20))
        assert (stage.disk / "before").read_text() == "kept"
    assert not os.path.ismount(tmp_path / "disk")


@needs("frozen disk")
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least_s"), [("frozen disk", 7.0), ("slow disk", 0.5)])
def test_a_write_waits_for_the_disk(kind, least_s, tmp_path):
    with KINDS[kind](fault(kind), tmp_path) as stage:
        code = f"""
import os, time, pathlib
worst = 0
for _ in range(2000):
    begun = time.monotonic()
    pathlib.Path({str(stage.disk)!r}, 'file').write_text('x')
    worst = max(worst, time.monotonic() - begun)
    pathlib.Path({str(tmp_path)!r}, 'new').write_text(str(worst))
    os.replace({str(tmp_path / "new")!r}, {str(tmp_path / "worst")!r})
    time.sleep(0.01)
"""
        started = stand_ins(tmp_path, f"exec({code!r})")
        stage.act(started)
        time.sleep(0.5)
        assert float((tmp_path / "worst").read_text()) > least_s
        end(started)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("store answers 503", "HTTP Error 503"),
        ("store dies", "closed|reset|Connection"),
        ("store is silent", "timed out"),
    ],
)
def test_the_store_is_ill_until_it_is_mended(kind, error, tmp_path):
    (tmp_path / "world" / "shapes").mkdir(parents=True)
    (tmp_path / "world" / "shapes" / "dataset.json").write_text("{}")
    folder = tmp_path / "fault"
    folder.mkdir()
    with KINDS[kind](fault(kind), folder) as stage:
        path = next(word for word in stage.overrides if word.startswith("data.tasks.shapes.path="))
        url = path.partition("=")[2] + "/dataset.json"
        with pytest.raises((OSError, urllib.error.URLError), match=error):
            urllib.request.urlopen(url, timeout=1).read()
        stage.mend()
        assert urllib.request.urlopen(url, timeout=5).read() == b"{}"


@needs("cut cable", "cable drops packets")
@pytest.mark.parametrize("kind", ["cut cable", "cable drops packets"])
def test_the_cable(kind, tmp_path):
    """Ping from one machine to the other: all come, then none, and after mending all; or nine of ten."""

    def answers(count: int) -> int:
        name = f"fault{os.getpid()}a"
        words = ["ip", "netns", "exec", name, sys.executable, "-c", UDP, "10.209.48.2", str(count)]
        server = subprocess.Popen(
            ["ip", "netns", "exec", f"fault{os.getpid()}b", sys.executable, "-c", ECHO], stdout=subprocess.PIPE
        )
        assert server.stdout is not None and server.stdout.readline()
        try:
            return int(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
        finally:
            server.kill()
            server.wait()

    with KINDS[kind](fault(kind, rank=1), tmp_path) as stage:
        assert answers(5) >= 3  # the first may wait for the address
        stage.act(Started(Trial(tmp_path, "", {}), ()))
        if kind == "cut cable":
            assert answers(3) == 0
            stage.mend()
            assert answers(5) >= 3  # the first may wait for the address
        else:
            assert 100 < answers(200) < 200  # 180 on average
    assert (
        f"fault{os.getpid()}a" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    )


ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
    opened.bind(('0.0.0.0', 7007))
    print('ready', flush=True)
    while True:
        opened.sendto(*opened.recvfrom(64))
"""
UDP = """
import socket, sys
got = 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
    opened.settimeout(0.1 if int(sys.argv[2]) > 50 else 1.0)
    for _ in range(int(sys.argv[2])):
        try:
            opened.sendto(b'x', (sys.argv[1], 7007))
            got += len(opened.recv(64))
        except OSError:
            pass
print(got)
"""


@needs("clock forward", "clock back")
@pytest.mark.parametrize(("kind", "jump_s"), [("clock forward", JUMP_S), ("clock back", -JUMP_S)])
def test_the_wall_clock_jumps_and_the_monotonic_one_goes_on(kind, jump_s, tmp_path):
    code = """
import os, pathlib, time
wall, steady = time.time(), time.monotonic()
pathlib.Path('clock_' + os.environ['RANK']).touch()
while abs(time.time() - wall) < 1000 and time.monotonic() - steady < 20: time.sleep(0.05)
pathlib.Path('jump_' + os.environ['RANK']).write_text(f'{time.time() - wall - (time.monotonic() - steady)}')
"""
    with KINDS[kind](fault(kind), tmp_path) as stage:
        started = stand_ins(tmp_path, f"exec({code!r})", **stage.environment)
        while not (tmp_path / "clock_0").exists() or not (tmp_path / "clock_1").exists():
            time.sleep(0.05)
        stage.act(started)
        assert codes(started) == [0, 0]
    assert float((tmp_path / "jump_1").read_text()) == pytest.approx(jump_s, abs=2)


ALLOCATES = "import time; time.sleep(1); held = [bytearray(1 << 20) for _ in range(200)]; time.sleep(1)"


def test_an_address_space_that_ends_is_an_error_of_the_rank(tmp_path):
    started = stand_ins(tmp_path, ALLOCATES)
    with KINDS["address space ends"](fault("address space ends", rank=1), tmp_path) as stage:
        stage.act(started)
        assert codes(started) == [0, 1]
    assert "MemoryError" in (tmp_path / "output.txt").read_text()


@needs("out of memory")
def test_out_of_memory_the_kernel_kills_the_rank(tmp_path):
    started = stand_ins(tmp_path, ALLOCATES)
    with KINDS["out of memory"](fault("out of memory", rank=1), tmp_path) as stage:
        stage.act(started)
        assert codes(started) == [0, -signal.SIGKILL]
    assert not [path for path in Path("/sys/fs/cgroup/memory").glob("fault_*") if path.name == f"fault_{os.getpid()}_0"]


def test_every_kind_is_a_stage(tmp_path):
    """Those that need no rights can be entered and left without a run."""
    for kind in KINDS:
        if not missing(kind) and "disk" not in kind and "cable" not in kind:
            (tmp_path / kind).mkdir()
            with KINDS[kind](fault(kind), tmp_path / kind) as stage:
                assert isinstance(stage, Stage) and stage.codes
