"""What is kept of an evaluation, and two of them side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.shards import DatasetError
from evaluation import Result
from evaluation.kept import Kept, comparison, keep, line_of, row_of
from tests.helpers.streams import numbered, opened, write_numbered

OPTIONS = {"limit": None, "beam": 2}


@pytest.fixture
def source(tmp_path):
    write_numbered(tmp_path / "set", (5, 5))
    return opened(numbered(str(tmp_path / "set")))


def row(source, right: int, options=OPTIONS, **changes):
    hits_N = np.arange(10) < right
    result = Result(
        {"accuracy": right / 10, "chance": 0.1, "samples": 10}, np.stack([hits_N, np.ones(10)], axis=1).astype(float)
    )
    return row_of(source, result, options, "accuracy", "chance", 1.5) | changes


def kept(folder: Path, *rows) -> Kept:
    folder.mkdir(exist_ok=True)
    keep(folder, "val", 7, rows)
    return Kept.read(folder, "val")


def test_a_line_and_a_file(source, tmp_path):
    line = line_of(row(source, 4), "val", 7)
    low, high = line["interval"]
    assert 0 <= low < 0.4 < high <= 1 and line | {"interval": 0} == {
        "task": "numbers", "kind": "classification", "split": "val", "step": 7, "accuracy": 0.4, "chance": 0.1, "samples": 10,
        "interval": 0, "figure": "accuracy", "floor": "chance", "seconds": 1.5,
    }  # fmt: skip
    found = kept(tmp_path / "a", row(source, 4))
    assert (found.name, found.split, found.step) == ("a", "val", 7)
    assert (
        found.rows["numbers"]["evidence"] == [[1, 1]] * 4 + [[0, 1]] * 6
        and found.rows["numbers"]["digest"] == source.digest
    )


def test_other_tasks_stay_in_the_file_and_the_newest_step_is_read(source, tmp_path):
    kept(tmp_path / "a", row(source, 4), row(source, 5, task="other"))
    found = kept(tmp_path / "a", row(source, 6))
    assert {name: r["metrics"]["accuracy"] for name, r in found.rows.items()} == {"numbers": 0.6, "other": 0.5}
    keep(tmp_path / "a", "val", 12, [row(source, 9)])
    keep(tmp_path / "a", "test", 99, [row(source, 1)])
    assert Kept.read(tmp_path / "a", "val").step == 12


def test_other_options_stand_beside_the_usual_ones(source, tmp_path):
    """Ten samples do not take the place of all."""
    kept(tmp_path / "a", row(source, 4))
    for options in (
        {"limit": 10}, {"beam": 1}, {"length_penalty": 0.6}, {"templates": "openai"}, {"weights": "weight"}, {"beam": 2},
    ):  # fmt: skip
        found = kept(tmp_path / "a", row(source, 5, options=options))
    assert {name: r["metrics"]["accuracy"] for name, r in found.rows.items()} == {
        "numbers": 0.5, "numbers, 10 samples at most": 0.5, "numbers, beam 1": 0.5, "numbers, length penalty 0.6": 0.5,
        "numbers, openai sentences": 0.5, "numbers, raw weights": 0.5,
    }  # fmt: skip


def test_a_step_and_tasks_can_be_chosen(source, tmp_path):
    for name in ("a", "b"):
        kept(tmp_path / name, row(source, 4), row(source, 5, task="other"), row(source, 5, task="other, beam 1"))
        keep(tmp_path / name, "val", 12, [row(source, 9)])
    one, other = (Kept.read(tmp_path / name, "val", 7) for name in ("a", "b"))
    lines = comparison(one, other, ["other"]).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["task", "other", "other, beam 1"]
    with pytest.raises(DatasetError, match="nothing to compare; a has numbers, other, other, beam 1"):
        comparison(one, other, ["nobody"])
    with pytest.raises(DatasetError, match="no kept evaluation val at step 9: "):
        Kept.read(tmp_path / "a", "val", 9)
    with pytest.raises(DatasetError, match="is of step 12, not of 9"):
        Kept.read(tmp_path / "a" / "evaluations" / "val_step_00000012.json", "val", 9)


def test_a_comparison(source, tmp_path):
    one = kept(tmp_path / "a", row(source, 2), row(source, 5, task="alone"))
    other = kept(tmp_path / "bb", row(source, 9))
    lines = comparison(one, other).splitlines()
    assert lines[0].split() == [
        "task",
        "figure",
        "a",
        "step",
        "7",
        "bb",
        "step",
        "7",
        "difference",
        "95",
        "%",
        "of",
        "it",
    ]
    cells = lines[1].split()
    assert cells[:5] == ["numbers", "accuracy", "0.2000", "0.9000", "+0.7000"]
    assert 0.3 < float(cells[5]) < 0.7 < float(cells[7]) <= 1.0
    assert lines[2] == "left out: alone: not in both"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": "abc"}, "different data"),
        ({"options": {"limit": None, "mask_rate": 0.5}}, "different options"),
        ({"figure": "loss"}, "not in both"),
    ],
)
def test_what_cannot_be_compared_is_said(source, tmp_path, changes, reason):
    one, other = kept(tmp_path / "a", row(source, 2)), kept(tmp_path / "b", row(source, 2, **changes))
    with pytest.raises(DatasetError, match=f"nothing to compare; numbers: .*{reason}"):
        comparison(one, other)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DatasetError, match=r"has no kept evaluation val: `python evaluate.py --run"):
        Kept.read(tmp_path, "val")
    for content in ("", "[]", json.dumps({"version": 2}), json.dumps({"version": 1, "results": 3})):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(DatasetError, match=r"x.json: not a kept evaluation"):
            Kept.read(tmp_path / "x.json", "val")
