"""The program where a machine, a launcher or a terminal is not as it should be: it works, or says why not in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, command, environment, records, train

SHORT = ("steps=2", "data.workers=1")


def run(words: list[str] | str, extra: dict[str, str] | None = None, drop: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and everything printed; a string goes through bash."""
    variables = {key: value for key, value in (environment() | (extra or {})).items() if key not in drop}
    done = subprocess.run(
        ["bash", "-c", words] if isinstance(words, str) else words, cwd=ROOT, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def listen() -> None:
    """Whoever started the tests may have had signals ignored, as nohup does, and children inherit that."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def started(config: Path, *overrides: str, ranks: int = 1) -> subprocess.Popen[str]:
    """A training of 500 steps, in its second one."""
    process = subprocess.Popen(
        command(config, "steps=500", "save_every=400", *overrides, ranks=ranks), cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=listen,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            return process
    raise AssertionError(process.wait())


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.slow
def test_two_runs_in_one_folder(config: Path):
    """The second ends with 2 and has written nothing; after a kill -9 of the first a start works at once."""
    process = started(config)
    folder = config.parent / "runs" / "tiny"
    process.send_signal(signal.SIGSTOP)  # its files keep still, and it lives
    time.sleep(0.2)
    before = files_of(folder)
    out = train(config, expect=2)
    assert f"error: {folder} is in use by process {process.pid} on " in out and "Traceback" not in out
    assert files_of(folder) == before
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "finished at step 3" in train(config, "steps=3")
    assert not (folder / "in_use.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_the_run_saves(config: Path, number: signal.Signals):
    process = started(config, "data.workers=1")
    os.killpg(process.pid, number)
    assert process.stdout is not None
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 85, rest
    assert "saved step_" in rest and "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_and_all_its_ranks_saves(number, config: Path):
    """As Ctrl-C and batch systems send it; the launcher passes it on, so that ranks get two."""
    process = started(config, "data.workers=1", ranks=2)
    os.killpg(process.pid, number)
    assert process.stdout is not None
    rest = process.stdout.read()
    assert "saved step_" in rest and "stopped at step" in rest and "gone without a report" not in rest, rest
    process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("optimizer.lr=1e30", "optimizer.warmup_steps=0", "steps=4")])
def test_a_run_that_diverges_does_not_end_as_finished(overrides, config: Path):
    out = train(config, *overrides, expect=2)
    assert "the run has ended with a loss or a gradient that is not finite; lower optimizer.lr" in out
    assert "Traceback" not in out and "finished" not in out
    folder = config.parent / "runs" / "tiny"
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["kind"] == "diverged"
    text = (folder / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert any(value is None for record in records(config) for value in record.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "drop"),
    [
        ({}, ("HOME",)),
        ({"HOME": "/proc"}, ()),
        ({"HOME": "/nowhere", "XDG_CACHE_HOME": "", "USER": ""}, ("LOGNAME",)),
        ({"TMPDIR": "/nowhere"}, ()),
        ({"WORLD_SIZE": "", "RANK": ""}, ()),
        ({"LC_ALL": "C"}, ()),
        ({"LC_ALL": "POSIX", "LANG": ""}, ()),
        ({"PYTHONWARNINGS": "error::UserWarning:__main__"}, ()),
    ],
)
def test_environments_that_work(extra, drop, config: Path):
    code, out = run([*command(config, *SHORT), "tracking.wandb=offline", "--local-rank=0"], extra, drop)
    assert code == 0 and "finished at step 2" in out and "Traceback" not in out, out
    assert " INFO " not in out, "a helper's log on the console"


@pytest.mark.slow
def test_a_user_without_an_entry_or_a_home(config: Path):
    """As containers run with `--user 4242`."""
    stranger = ["unshare", "-U", "--map-user=4242", "--map-group=4242"]
    if subprocess.run([*stranger, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights to take another user's number here (unshare -U)")
    words = [*stranger, *command(config, *SHORT, "data.workers=1"), "tracking.wandb=offline"]
    code, out = run(words, drop=("HOME", "USER", "LOGNAME"))
    assert code == 0 and "finished at step 2" in out and "Traceback" not in out, out


@pytest.mark.slow
@pytest.mark.parametrize(
    "shell",
    [
        "ulimit -n 256; exec {}",
        "{} > /dev/full 2>&1",
        "{} >&- 2>&- <&-",
        "{} 2>&1 | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}",
    ],
)
def test_shells_that_work(shell, config: Path):
    code, out = run(shell.format(" ".join(command(config, *SHORT, "data.workers=2"))))
    assert code == 0, out
    assert [record["step"] for record in records(config)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["size=64k", "size=4k,mode=0555"])
def test_a_small_dev_shm(size, config: Path):
    """64 KB is enough for the semaphores of workers; without those there is one line."""
    inside = f"mount -t tmpfs -o {size} none /dev/shm && "
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no rights to mount here (unshare -m)")
    code, out = run(["unshare", "-m", "bash", "-c", inside + " ".join(command(config, *SHORT, "data.workers=2"))])
    if "64k" in size:
        assert code == 0, out
        folder = config.parent / "runs" / "tiny"
        evaluation = f"{sys.executable} evaluate.py --run {folder} --limit 8 --workers 2"
        code, out = run(["unshare", "-m", "bash", "-c", inside + evaluation])
        assert code == 0 and len(out.splitlines()) == 5, out
    else:
        assert code == 2 and "worker processes cannot start" in out and "data.workers=0" in out, out


@pytest.mark.parametrize(
    ("overrides", "extra", "said"),
    [
        (("runs=/etc/hostname",), {}, "/etc/hostname/tiny cannot be written: "),
        ((), {"RANK": "1"}, "RANK=1 is not below WORLD_SIZE=1"),
    ],
)
def test_what_cannot_work_is_one_line(overrides, extra, said, config: Path):
    code, out = run(command(config, *overrides), extra)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in out, out


@pytest.mark.slow
def test_evaluation_finds_data_that_was_moved_and_says_which_steps_there_are(config: Path, tmp_path, world):
    """From another working directory, the run folder moved too."""
    train(config, "steps=3", "name=old")
    folder = tmp_path / "kept"
    (config.parent / "runs" / "old").rename(folder)
    for task in ("shapes", "clips"):
        (tmp_path / task).symlink_to(world / task)
    words = [sys.executable, str(ROOT / "evaluate.py"), "--run", "kept", "--limit", "8", "--tasks", "shapes"]

    def evaluate(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=120
        )

    moved = evaluate("data.tasks.shapes.path=shapes")
    assert moved.returncode == 0, moved.stderr
    assert json.loads(moved.stdout)["step"] == 3
    for more, said in (
        (("--step", "7"), "has no checkpoint of step 7; there are 3"),
        (("model.depth=1",), "model.depth=1: the run is what it is"),
        (("data.tasks.shapes.path=nowhere",), "nowhere/dataset.json: No such file"),
    ):
        refused = evaluate(*more)
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr, refused.stderr


@pytest.mark.slow
def test_results_that_cannot_be_printed_are_no_success(config: Path):
    train(config, "steps=3")
    folder = config.parent / "runs" / "tiny"
    words = f"{sys.executable} evaluate.py --run {folder} --limit 8 --tasks shapes"
    code, out = run(f"{words} > /dev/full")
    assert (
        code == 2
        and "error: standard output cannot be written: No space left on device" in out
        and "Traceback" not in out
    )
