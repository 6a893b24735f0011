"""The entry of a container: real processes, two nodes on one machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusters.kubernetes import ranks
from clusters.kubernetes.ranks import exit_code, place_of
from clusters.ranks import Ended, Place
from parallel.launch import PreflightError
from run import errors
from tests.helpers.places import ROOT

SAVES = r"""
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    os.write(1, f"saved by {os.environ['RANK']}\n".encode())  # at once: ranks of a node share the pipe
    os._exit(85)
signal.signal(signal.SIGTERM, save)
os.write(1, "rank {RANK} of {WORLD_SIZE} {MASTER_PORT}\n".format(**os.environ).encode())
time.sleep(60)
"""


def free_port() -> int:
    """Followed by another free one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
                return port
            except (OSError, OverflowError):
                continue


ENTRY = ("-m", "clusters.kubernetes.ranks")


def started(
    node: int, nodes: int, port: int, *words: str, folder: Path, per_node: int = 1, entry: tuple[str, ...] = ENTRY
) -> subprocess.Popen[str]:
    place = {
        "PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": str(per_node), "JOB_COMPLETION_INDEX": str(node),
        "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), "TMPDIR": str(folder),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *entry, *words], cwd=ROOT, env=os.environ | place,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], within_s: float = 20) -> tuple[int, str]:
    out, _ = process.communicate(timeout=within_s)
    return process.returncode, out


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SAVES)
    return path


def test_exit_codes_have_one_meaning():
    assert (ranks.EXIT_USER, ranks.EXIT_STOPPED) == (errors.EXIT_USER, errors.EXIT_STOPPED)


def test_a_place_in_torchruns_words():
    words = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "JOB_COMPLETION_INDEX": "1",
        "PET_MASTER_ADDR": "demo-0.demo",
    }
    place = place_of(words)
    assert place == Place(8, 4, 4, "demo-0.demo", 29500)
    assert place_of({}) == Place(1, 0, 1, "127.0.0.1", 29500)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES='two': must be a whole number from 1"),
        (
            {"PET_NNODES": "2", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "a"},
            "PET_NODE_RANK=2 is not below PET_NNODES=2",
        ),
        ({"PET_NNODES": "2"}, "PET_MASTER_ADDR is not set"),
        ({"PET_MASTER_PORT": "65535"}, "must be below 65535"),
    ],
)
def test_a_place_that_cannot_be(words, said):
    with pytest.raises(PreflightError, match=said):
        place_of(words)


@pytest.mark.parametrize(
    ("codes", "first", "code"),
    [
        ((85, 85), (0, 1), 85),
        ((1, 85), (0, 1), 1),
        ((85, 2, 1), (0, 1, 2), 2),
        ((-9, 85), (0, 1), 137),
        ((-9, 1), (0,), 137),
        ((1, -9), (0,), 1),
        ((-15,), (0,), 143),
        ((0, 0), (), 0),
    ],
)
def test_the_code_of_a_node_is_that_of_the_ranks_that_ended_first(codes, first, code):
    assert exit_code(Ended(codes, first=first)) == code


def test_ranks_that_had_to_be_killed_as_another_node_was_lost_are_a_failure():
    assert exit_code(Ended((-9, 0), hung=frozenset({0}))) == 1


def until(process: subprocess.Popen[str], word: str, times: int = 1) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        times -= word in line
        if not times:
            return
    raise AssertionError(f"ended with {process.wait()} before it said {word!r}")


def test_nodes_begin_together_and_a_signal_reaches_all_ranks_of_one(script, tmp_path):
    port = free_port()
    first = started(0, 2, port, str(script), per_node=2, folder=tmp_path)
    until(first, "waiting for 1 of 2 nodes: 1")
    second = started(1, 2, port, str(script), per_node=2, folder=tmp_path / "..")
    until(first, f"of 4 {port}", times=2)
    until(second, f"of 4 {port}", times=2)
    for node in (first, second):
        node.send_signal(signal.SIGTERM)
    codes_and_words = [ended(node) for node in (first, second)]
    assert [code for code, _ in codes_and_words] == [85, 85], codes_and_words
    assert sorted("".join(out for _, out in codes_and_words).split("\n"))[-4:] == [f"saved by {n}" for n in range(4)]


def test_a_node_that_is_lost_ends_the_others_with_1(script, tmp_path, monkeypatch):
    """Also where their ranks hang: they are given GRACE_S, made short here."""
    short = tmp_path / "short.py"
    short.write_text(
        "import sys\nfrom clusters.kubernetes import ranks\nranks.GRACE_S = 1.0\nsys.exit(ranks.main(sys.argv[1:]))\n"
    )
    port = free_port()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nodes = [started(n, 2, port, str(script), folder=tmp_path, entry=(str(short),)) for n in (0, 1)]
    for number, node in enumerate(nodes):
        until(node, f"rank {number} of 2")
    began = time.monotonic()
    os.killpg(nodes[1].pid, signal.SIGKILL)  # as a container's end takes all that is in it
    code, out = ended(nodes[0])
    assert code == 1 and "another node is gone" in out and time.monotonic() - began < 10, out
    ended(nodes[1])


def test_a_node_that_is_done_is_not_lost(tmp_path):
    """The second node ends a second earlier."""
    script = tmp_path / "done.py"
    script.write_text("import os, time\ntime.sleep(1.5 * (os.environ['RANK'] == '0'))\n")
    port = free_port()
    nodes = [started(n, 2, port, str(script), folder=tmp_path) for n in (0, 1)]
    for code, out in map(ended, nodes):
        assert code == 0 and "gone" not in out, out


@pytest.mark.parametrize("code", [0, 1, 2, 85])
def test_the_exit_code_is_that_of_the_rank_that_failed(code, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(f"import os, sys\nsys.exit({code} if os.environ['RANK'] == '1' else 0)\n")
    assert ended(started(0, 1, free_port(), str(script), per_node=2, folder=tmp_path))[0] == code


def test_a_signal_while_waiting_for_nodes_loses_nothing(script, tmp_path):
    node = started(1, 2, free_port(), str(script), folder=tmp_path)
    until(node, "waits for the first node")
    node.send_signal(signal.SIGTERM)
    assert ended(node) == (85, "")


def test_a_newcomer_waits_until_the_old_meeting_is_over(script, tmp_path):
    """A pod that was started again must not join ranks that have not yet seen that it was gone."""
    port = free_port()
    nodes = [started(n, 2, port, str(script), folder=tmp_path) for n in (0, 1)]
    until(nodes[0], "rank 0 of 2")
    newcomer = started(1, 2, port, str(script), folder=tmp_path)
    until(newcomer, "waits for the first node")
    time.sleep(0.5)
    assert newcomer.poll() is None
    for node in (*nodes, newcomer):
        node.send_signal(signal.SIGTERM)
        assert ended(node)[0] == 85


def test_strangers_at_the_meeting_place_change_nothing(tmp_path):
    port = free_port()
    script = tmp_path / "quick.py"
    script.write_text("pass\n")
    first = started(0, 2, port, str(script), folder=tmp_path)
    until(first, "waiting for")
    for word in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", b"-1\n", b"", b"9" * 100):
        with socket.create_connection(("127.0.0.1", port + 1), timeout=5) as stranger:
            stranger.sendall(word)
    second = started(1, 2, port, str(script), folder=tmp_path)
    assert [ended(node)[0] for node in (first, second)] == [0, 0]


def test_health_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert ranks.main(["--check"]) == 0, "no ranks were started here"
    ranks.alive_file().write_text(f"[{os.getpid()}]")
    assert ranks.main(["--check"]) == 0
    ranks.alive_file().write_text(f"[{os.getpid()}, 4194305]")  # above the largest number of a process
    assert ranks.main(["--check"]) == 1


@pytest.mark.slow
def test_torchrun_ends_with_1_whatever_its_ranks_ended_with(tmp_path):
    """The reason for an entry of our own; when this fails, torchrun may take its place."""
    script = tmp_path / "stops.py"
    script.write_text("raise SystemExit(85)\n")
    words = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=1", f"--master-port={free_port()}"]
    done = subprocess.run([sys.executable, *words, str(script)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
