"""metrics.jsonl: each step once, and lines that any reader of JSON takes."""

from __future__ import annotations

import json

import pytest

from parallel.health.claim import FolderError
from run.sinks.json_lines import JsonLines


def test_records_after_the_checkpoint_are_dropped_and_others_stay(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "cut o')
    sink = JsonLines(path, 2)
    sink.write({"step": 3, "loss/a": 0.5})
    sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss/a": 0.5},
    ]


def test_what_is_no_finite_number_is_null(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl", 0)
    sink.write({"step": 1, "loss/a": float("nan"), "load": [[float("inf"), 0.5]], "lr": -float("inf"), "name": "NaN"})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "loss/a": null, "load": [[null, 0.5]], "lr": null, "name": "NaN"}\n'


def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    sink = JsonLines.__new__(JsonLines)
    sink._file = (tmp_path / "metrics.jsonl").open("a", buffering=1)
    with pytest.raises(FolderError, match=r"metrics.jsonl: No space left on device; the same command resumes"):
        sink.write({"step": 1})
