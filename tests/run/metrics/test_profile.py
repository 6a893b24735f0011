"""The profile of made steps: when it begins and ends, and that other programs can open it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from run.metrics.profile import Profile, operators


def steps(listener: Profile, first: int, last: int) -> None:
    """Two micro-batches each, with the phases of the loop."""
    weight_II = torch.ones(8, 8, requires_grad=True)
    for step in range(first, last + 1):
        for _ in range(2):
            listener("data", step)
            listener("forward", None)
            loss = (weight_II @ weight_II).sum()
            listener("backward", None)
            loss.backward()
        listener("save", None)


def test_the_trace_has_the_steps_and_their_phases(tmp_path):
    lines: list[str] = []
    listener = Profile(tmp_path / "profile", 3, "cpu", (2, 3), lines.append)
    steps(listener, 1, 5)
    assert lines == [
        f"profile of steps 2 to 3 in {tmp_path / 'profile'}: open trace_rank_00003.json.gz at https://ui.perfetto.dev"
    ]
    # The format of Chrome's traces: events with phase, name, process, thread, start and duration in microseconds.
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace_rank_00003.json.gz").read_bytes()))
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert all({"name", "pid", "tid", "ts", "dur"} <= event.keys() and event["dur"] >= 0 for event in complete)
    ranges = sorted((e for e in complete if e["name"].startswith("phase ")), key=lambda event: event["ts"])
    of_one = ["phase data", "phase forward", "phase backward"] * 2 + ["phase save"]
    assert [event["name"] for event in ranges] == of_one * 2
    ends = [event["ts"] + event["dur"] for event in ranges]
    assert all(end <= after["ts"] for end, after in zip(ends, ranges[1:], strict=False))
    products = [event for event in complete if event["name"] == "aten::mm"]
    assert len(products) == 2 * 2 * 3  # one forward, two backward

    table = json.loads((tmp_path / "profile" / "operators_rank_00003.json").read_text())
    assert table["steps"] == [2, 3] and table["seconds"] > 0 and table["collectives"] == []
    calls = {row["name"]: row["calls"] for row in table["operators"]}
    assert calls["aten::mm"] == 12 and not [name for name in calls if name.startswith("phase ")]
    assert sum(row["share"] for row in table["operators"]) == pytest.approx(1, abs=0.01)
    seconds = [row["seconds"] for row in table["operators"]]
    assert seconds == sorted(seconds, reverse=True)


def test_the_last_step_of_a_run_ends_it(tmp_path):
    lines: list[str] = []
    listener = Profile(tmp_path, 0, "cpu", (2, 2), lines.append)
    steps(listener, 1, 2)
    assert not lines
    listener("end", None)
    assert len(lines) == 1 and "profile of step 2 in" in lines[0] and (tmp_path / "trace_rank_00000.json.gz").exists()


def test_a_run_that_goes_on_later_says_so_once(tmp_path):
    lines: list[str] = []
    steps(Profile(tmp_path, 0, "cpu", (2, 4), lines.append), 4, 6)
    assert lines == ["no profile of steps 2 to 4: the run goes on from step 3"] and not list(tmp_path.iterdir())


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    steps(Profile(tmp_path / "file" / "profile", 0, "cpu", (1, 1), lines.append), 1, 2)
    assert lines == [f"no profile of step 1: {tmp_path / 'file' / 'profile'}: Not a directory"]


def average(key: str, own: float, whole: float, device: float, count: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        key=key,
        count=count,
        self_cpu_time_total=own,
        cpu_time_total=whole,
        self_device_time_total=device,
        device_time_total=device,
    )


def test_operators_count_their_own_time_and_collectives_all_of_it():
    """Microseconds: 600 + 300 + 100 on the host, 40 and 10 on the device."""
    averages = [
        average("aten::linear", 300, 900, 0),
        average("aten::mm", 600, 600, 40, count=3),
        average("c10d::allreduce_", 100, 250, 10, count=2),
        average("phase forward", 5000, 9000, 0),
    ]
    host = operators(averages, on_device=False)
    assert host["operators"] == [
        {"name": "aten::mm", "calls": 3, "seconds": 0.0006, "share": 0.6},
        {"name": "aten::linear", "calls": 1, "seconds": 0.0003, "share": 0.3},
    ]
    assert host["collectives"] == [{"name": "c10d::allreduce_", "calls": 2, "seconds": 0.00025, "share": 0.1}]
    device = operators(averages, on_device=True)
    assert [row["name"] for row in device["operators"]] == ["aten::mm"] and device["operators"][0]["share"] == 0.8


def test_nothing_is_there_until_the_first_step(tmp_path):
    listener = Profile(Path(tmp_path) / "profile", 0, "cpu", (5, 6))
    steps(listener, 1, 4)
    assert listener._profiler is None and not (tmp_path / "profile").exists()
