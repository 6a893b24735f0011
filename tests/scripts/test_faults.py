"""What the fault campaign draws and how it judges; one real fault of each cheap kind in the slow tests."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
import time

import pytest

from scripts.faults.__main__ import _results, main
from scripts.faults.checks import compare, resumed_at
from scripts.faults.faults import EVALUATE_EVERY, PHASES, SAVE_EVERY, STEPS, draw
from scripts.faults.launching import Trial, marked, wait_for_end, wait_for_place
from scripts.faults.launching import _started as started_of
from scripts.faults.report import summary, table
from scripts.faults.table import KINDS, missing
from scripts.faults.trial import Result
from tests.helpers.places import ROOT

GOOD = Result(0, "kill one rank", "data", 8, 1, 1, 12.0, 6, 6, 0.0, 60.0)


def test_a_campaign_is_drawn_from_its_seed():
    faults = [draw(0, number) for number in range(100)]
    assert faults == [draw(0, number) for number in range(100)] != [draw(1, number) for number in range(100)]
    assert {fault.kind for fault in faults} == set(PHASES) == set(KINDS)
    counts = collections.Counter(fault.kind for fault in faults)
    assert set(counts.values()) <= {4, 5}  # 100 over 21 kinds
    assert {fault.phase for fault in faults} == {"start", "data", "forward", "evaluate", "save"}


def test_places_are_such_that_there_are():
    for fault in (draw(3, number) for number in range(200)):
        assert fault.phase in PHASES[fault.kind] and fault.step < STEPS - 1
        if fault.phase == "save":
            assert fault.step % SAVE_EVERY == 0
        if fault.phase == "evaluate":
            assert fault.step % EVALUATE_EVERY == 0
        assert (fault.step == 0) == (fault.phase == "start")


def test_one_kind_alone():
    assert {draw(0, number, ("full disk",)).kind for number in range(5)} == {"full disk"}


def losses(**changed: float) -> dict[int, dict[str, float]]:
    return {step: {"loss/shapes": 2.0} | (changed if step == 7 else {}) for step in range(1, STEPS + 1)}


def test_losses_that_differ_are_seen():
    assert compare(losses(), losses()).wrong == "" and compare(losses(), losses()).difference == 0.0
    assert compare(losses(**{"loss/shapes": 2.000001}), losses()).wrong == ""  # 5e-7
    found = compare(losses(**{"loss/shapes": 2.00001}), losses())
    assert found.difference == pytest.approx(5e-6) and found.wrong.startswith("loss/shapes of step 7")
    twice = {step: values for step, values in losses().items() if step != 4}
    assert "the steps of the records are" in compare(twice, losses()).wrong
    assert "step 7 has" in compare(losses(**{"loss/clips": 1.0}), losses()).wrong


def test_where_a_start_went_on(tmp_path):
    events = [("start", 0), ("note", 3), ("resume", 3), ("note", 6)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps({"kind": k, "step": s}) + "\n" for k, s in events))
    assert resumed_at(tmp_path) == 3 and resumed_at(tmp_path / "nowhere") == 0


def test_the_report_counts_what_was_survived_and_names_the_rest():
    bad = Result(
        1, "kill one rank", "save", 9, 0, None, 95.0, -1, -1, 0.0, 100.0, wrong="after 95 s there is still: python 7"
    )
    row = table([GOOD, bad]).splitlines()[-1]
    assert row == "| kill one rank | 2 | 1 | data, save | 12 to 12 | at most 1 steps | 0 |"
    assert summary([GOOD, bad]).splitlines() == [
        "1 of 2 faults were survived",
        "the longest end: 95 s (kill one rank, save)",
        "80 s a fault",
        "fault 1 (kill one rank, save of step 9, rank 0): after 95 s there is still: python 7",
    ]


def test_the_list_says_what_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr("scripts.faults.__main__.missing", lambda kind: "needs root" if kind == "full disk" else "")
    assert main(["--list", "--count", "21"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out: full disk: needs root" and len(lines) == 22


def test_a_repeated_command_knows_what_it_has_and_tries_failures_again_when_asked(tmp_path):
    faults = [draw(0, number, ("kill one rank", "full disk")) for number in range(3)]
    lines = [
        GOOD,
        dataclasses.replace(GOOD, number=1, wrong="hangs"),
        dataclasses.replace(GOOD, number=2, kind="no such"),
    ]
    lines = [
        dataclasses.replace(line, kind=fault.kind) for line, fault in zip(lines[:2], faults, strict=False)
    ] + lines[2:]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps({"seed": 0} | dataclasses.asdict(line)) + "\n" for line in lines))
    assert {number: result.wrong for number, result in _results(path, 0, faults, again=False).items()} == {
        0: "",
        1: "hangs",
    }
    assert list(_results(path, 0, faults, again=True)) == [0] and _results(path, 1, faults, again=False) == {}


def test_all_processes_of_a_trial_are_found_also_those_that_left(tmp_path):
    """The command ends at once; what it leaves in another session still counts as running, and is ended here."""
    child = "import time; time.sleep(120)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    trial = Trial(tmp_path, str(tmp_path), {})
    started = started_of(trial, [[sys.executable, "-c", code]], [{}])
    code_of, _ = wait_for_end(started, 3.0)
    left = marked(str(tmp_path))
    for process in left:
        process.kill()
    assert code_of is None and started.code() == 0 and len(left) == 1
    assert wait_for_end(started, 10.0)[0] == 0


def test_a_place_is_a_whole_line(tmp_path):
    trial = Trial(tmp_path, str(tmp_path), {})
    started = started_of(trial, [[sys.executable, "-c", "import time; time.sleep(1)"]], [{}])
    (trial.trace / "1").write_text("11 data\n2 forward\n")
    assert wait_for_place(started, 1, "2 forward", 1.0)
    begun = time.monotonic()
    assert not wait_for_place(started, 1, "1 data", 30.0) and time.monotonic() - begun < 20  # it has ended meanwhile
    wait_for_end(started, 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill one rank", "terminate the supervisor", "full disk"])
def test_a_real_fault_is_survived(kind, tmp_path):
    if missing(kind):
        pytest.skip(f"{kind}: {missing(kind)}")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.faults", "--count=1", f"--only={kind}", f"--out={tmp_path}", "--slack=3"],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "1 of 1 faults were survived" in done.stdout, done.stdout + done.stderr
