"""A run of two ranks of which one fails, is killed, stands still or is asked to stop. tests/helpers/sabotage.py does it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, command, environment, records, train

SABOTAGE = ROOT / "tests" / "helpers" / "sabotage.py"


def sabotaged(config: Path, deed: str, *overrides: str, ranks: int = 2) -> tuple[int, str, float]:
    """Exit code of the launcher, everything it and the ranks printed, and seconds from the last step's line to the end."""
    words = [str(SABOTAGE) if word.endswith("train.py") else word for word in command(config, *overrides, ranks=ranks)]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment() | {"SABOTAGE": deed, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines, since = [], time.monotonic()
    for line in process.stdout:  # ends when the last process that holds the pipe has gone
        lines.append(line)
        if line.startswith("step "):
            since = time.monotonic()
    return process.wait(timeout=60), "".join(lines), time.monotonic() - since


@pytest.mark.slow
def test_the_rank_that_failed_first_has_the_last_word(config: Path):
    """It fails in its second micro-batch of step 2, when it holds gradients that DeepSpeed would want to reduce."""
    code, out, seconds = sabotaged(config, "raise:1:4", "parallel.expert=2", "micro_batches=4")
    assert code == 1, out
    assert seconds < 30, f"{seconds:.0f} s"
    note = config.parent / "runs" / "tiny" / "errors" / "rank_00001.json"
    assert f"rank 0 stopped: rank 1 failed first at step 2 (backward): SabotageError: on purpose; see {note}\n" in out
    assert out.count("Traceback (most recent call last)") == 1, out
    report = out[out.index("rank 1 failed first at step 2 (backward)\nTraceback") :]
    assert "SabotageError: on purpose" in report and "rank 0 stopped" not in report
    told = json.loads(note.read_text())
    assert (told["rank"], told["step"], told["phase"]) == (1, 2, "backward") and "sabotage.py" in told["traceback"]
    assert not any((config.parent / "runs" / "tiny" / "health").glob("rank_*.json"))

    assert "finished at step 6" in train(config, "parallel.expert=2", "micro_batches=4", ranks=2)
    assert not note.exists(), "the errors of an earlier start are removed"


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on(config: Path):
    code, out, seconds = sabotaged(config, "kill:1:5", "parallel.expert=2", "save_every=2")
    assert code not in (0, 2), out
    assert seconds < 30, f"{seconds:.0f} s"
    assert re.search(r"rank 0 stopped at step 5 \(\w+\): rank 1 \(pid \d+ on .*\) is gone without a report", out), out
    assert "Traceback" not in out
    out = train(config, "parallel.expert=2", "save_every=2", ranks=2)
    assert "continues at step 4" in out and "finished at step 6" in out
    assert [record["step"] for record in records(config)] == list(range(1, 7))


@pytest.mark.slow
def test_a_rank_that_stands_still_is_reported_and_waited_for(config: Path):
    code, out, _ = sabotaged(config, "sleep:1:2", "parallel.stall_s=3", "steps=3")
    assert code == 0 and "finished at step 3" in out, out
    for rank, phase in ((0, "reduce"), (1, "backward")):  # rank 0 waits for rank 1
        assert len(re.findall(rf"rank {rank} has been in {phase} of step 2 for \d s", out)) == 1, out
    assert re.search(r"step 2, backward: rank 1, for \d s .*\n  step 2, reduce: rank 0, for \d s", out), out
    stacks = config.parent / "runs" / "tiny" / "health" / "stacks_rank_00001.txt"
    assert "sabotage.py" in stacks.read_text()


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_on_all(config: Path):
    code, out, _ = sabotaged(config, "catch:1:2", "parallel.expert=2", "steps=500", "save_every=400")
    assert code == 85, out
    assert "stopped at step 2" in out
    assert (config.parent / "runs" / "tiny" / "checkpoints" / "latest").read_text() == "step_00000002"


@pytest.mark.slow
def test_an_only_rank_fails_as_any_program_does(config: Path):
    code, out, _ = sabotaged(config, "raise:0:3", ranks=1)
    assert code == 1 and out.rstrip().endswith("SabotageError: on purpose")
    assert json.loads((config.parent / "runs" / "tiny" / "errors" / "rank_00000.json").read_text())["step"] == 2
    assert os.listdir(config.parent / "runs" / "tiny" / "health") == []


def test_fp16_ends_when_its_scale_has_nowhere_to_go(config: Path):
    """It looks for one below 2^16 and halves it 16 times, whatever `max_skipped_steps` says; at 1 the run is told to have diverged."""
    options = ("parallel.precision=fp16", "max_skipped_steps=2", "steps=20", "save_every=20")
    code, out, _ = sabotaged(config, "overflow:0:1", *options, ranks=1)
    assert code == 2 and "step 16: no finite gradient 16 times in a row" in out, out
