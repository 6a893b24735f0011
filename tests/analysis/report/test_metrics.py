"""Records of a run, line by line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis.report.metrics import numbers_of, read_metrics, read_use, use_of

ONE = {"decisions": ["0 ffn"], "modalities": ["text"], "experts": 2}


def use_line(step: int, taken: float) -> dict:
    return {
        "step": step,
        **ONE,
        "tasks": {"t": {"taken": [[[taken, 1.0]]], "asked": [[taken + 1]], "weight": [[[0.5, 0.5]]]}},
    }


def test_columns_lists_and_alarms_are_told_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [
        {
            "step": 10,
            "loss/a": 2.0,
            "expert_load": [[0.25, 0.75]],
            "alarms": ["dead"],
            "none": None,
            "word": "x",
            "truth": True,
        },
        {"step": 20, "loss/a": 1, "expert_load": [[0.5, 0.5]], "loss/b": 10**400},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics = read_metrics(path)
    assert metrics.columns.keys() == {"loss/a", "loss/b"}
    steps, values = metrics.below("loss")["a"]
    assert list(steps) == [10, 20] and list(values) == [2.0, 1.0]
    assert metrics.last("loss/a") == 1.0 and metrics.last("loss/b") is None and metrics.last("nothing") is None
    first_steps, load_SNE = metrics.over_time["expert_load"]
    assert first_steps == [10, 20] and load_SNE.tolist() == [[[0.25, 0.75]], [[0.5, 0.5]]]
    assert metrics.alarms == ((10, "dead"),) and metrics.last_step == 20 and metrics.damaged == 0


def test_lines_that_are_no_records_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "a": 1}\n{"step": 2, "a"\n[1]\n{"a": 2}\n{"step": true}\n\xff\xfe\n'
        + b"[" * 100_000
        + b'\n{"step": 3, "a": 2}'
    )
    metrics = read_metrics(path)
    assert metrics.damaged == 6 and list(metrics.columns["a"][0]) == [1, 3]
    assert read_metrics(tmp_path / "none.jsonl").columns == {}


def test_use_is_summed_over_the_last_quarter(tmp_path):
    path = tmp_path / "expert_use.jsonl"
    path.write_text("".join(json.dumps(use_line(step, float(step))) + "\n" for step in range(1, 9)))
    use = read_use(path)
    assert use is not None and use.tasks["t"]["taken"].tolist() == [[[7.0 + 8.0, 2.0]]]
    assert use.total("asked").tolist() == [[8.0 + 9.0]] and "steps 7 to 8" in use.about


@pytest.mark.parametrize(
    "change",
    [
        {"decisions": []},
        {"experts": 3},
        {"experts": "2"},
        {"modalities": None},
        {"tasks": {}},
        {"tasks": {"t": []}},
        {"tasks": {"t": {"taken": [1]}}},
    ],
)
def test_use_whose_parts_do_not_go_together_is_none(change):
    assert use_of(use_line(1, 1.0), "") is not None
    assert use_of(use_line(1, 1.0) | change, "") is None


def test_only_numbers_are_numbers():
    assert (
        numbers_of([1, [2]]) is None and numbers_of("1") is None and numbers_of([]) is None and numbers_of([{}]) is None
    )
    found = numbers_of([1, None])
    assert found is not None and found[0] == 1 and np.isnan(found[1])
