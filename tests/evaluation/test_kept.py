"""What is kept of an evaluation, and two of them side by side."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.shards import DatasetError
from evaluation import Evaluation, Result
from evaluation.kept import FOLDER, LOCK, Kept, comparison, keep, line_of, options_of, reading_of, row_of, table_of
from tests.helpers.models import make
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
        {"trials": 1}, {"trials": 5}, {"batch_size": 8, "ranks": 1}, {"batch_size": 64, "ranks": 2},
    ):  # fmt: skip
        found = kept(tmp_path / "a", row(source, 5, options=options))
    assert {name: r["metrics"]["accuracy"] for name, r in found.rows.items()} == {
        "numbers": 0.5, "numbers, 10 samples at most": 0.5, "numbers, beam 1": 0.5, "numbers, length penalty 0.6": 0.5,
        "numbers, openai sentences": 0.5, "numbers, raw weights": 0.5, "numbers, 1 trial": 0.5, "numbers, batches of 8": 0.5,
        "numbers, 2 ranks": 0.5,
    }  # fmt: skip


def test_a_row_of_an_edited_suite_stays_beside_the_new_one(source, tmp_path):
    kept(tmp_path, row(source, 4, {"limit": None, "num_frames": 4}))
    for right in (5, 6):
        found = kept(tmp_path, row(source, right, {"limit": None, "num_frames": 16}))
    assert {name: r["metrics"]["accuracy"] for name, r in found.rows.items()} == {
        "numbers, num_frames 4": 0.4, "numbers": 0.6,
    }  # fmt: skip


def test_networks_that_read_otherwise_are_compared_and_it_is_said(source, tmp_path):
    """Rows of earlier versions do not say how they read."""
    one, other, old = (
        kept(tmp_path / name, row(source, right, {"limit": None} | read))
        for name, right, read in (("a", 2, {"num_frames": 4}), ("b", 9, {"num_frames": 16}), ("c", 9, {}))
    )
    assert comparison(one, other).splitlines()[2:] == ["numbers: num_frames is 4 and 16"]
    assert len(comparison(one, old).splitlines()) == 2
    masks = [
        kept(tmp_path / name, row(source, 2, {"max_text": n}, kind="masked_text")) for name, n in (("d", 8), ("e", 9))
    ]
    with pytest.raises(DatasetError, match="different options"):
        comparison(masks[0], masks[1])


def test_how_samples_are_read_is_kept(source):
    read = {"max_text": 4, "temperature": ""}
    assert options_of(Evaluation(make(), source)) == {"limit": None, "templates": "none", "views": [1, 1]} | read
    for kind, more in (
        ("video_class", {"num_frames": 4, "frame_sampling": "segment", "frame_stride": 0.0}), ("text_class", {}),
    ):  # fmt: skip
        task: Any = SimpleNamespace(config=source.task.config, context=SimpleNamespace(info=SimpleNamespace(kind=kind)))
        other: Any = SimpleNamespace(source=SimpleNamespace(task=task))
        assert reading_of(other) == read | more
        task.config = dataclasses.replace(task.config, kind="text_classification")
        assert reading_of(other) == read | {"template": "{text} <spe>"} | more


def test_sentences_of_one_s_own_are_told_apart_by_what_they_are(source):
    def name(place: str, *sentences: str) -> str:
        return options_of(Evaluation(make(), source, templates=sentences), place)["templates"]

    assert name("@a.txt", "a {}", "my {}") == name("@/b.txt", "a {}", "my {}")
    assert name("@a.txt", "a {}") != name("@a.txt", "my {}") and name("simple", "a {}") == "simple"


def test_rows_of_others_who_write_at_once_stay(source, tmp_path):
    """Whoever keeps waits, and reads what has been written meanwhile."""
    kept(tmp_path, row(source, 4))
    content = json.loads((tmp_path / FOLDER / "val_step_00000007.json").read_text())
    with (tmp_path / FOLDER / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = threading.Thread(target=keep, args=(tmp_path, "val", 7, [row(source, 5, task="mine")]))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        content["results"].append(row(source, 6, task="theirs"))
        (tmp_path / FOLDER / "val_step_00000007.json").write_text(json.dumps(content))
    writer.join(60)
    assert list(Kept.read(tmp_path, "val").rows) == ["numbers", "theirs", "mine"]


def test_only_what_nobody_can_read_is_replaced(source, tmp_path, monkeypatch):
    path = tmp_path / FOLDER / "val_step_00000007.json"
    kept(tmp_path, row(source, 4))
    for damaged in ("", "{", "[1]", '{"version": 1}'):
        path.write_text(damaged)
        assert list(kept(tmp_path, row(source, 5, task="new")).rows) == ["new"]
        assert (tmp_path / FOLDER / f"{path.name}.damaged").read_text() == damaged
    path.write_text('{"version": 2, "results": []}')
    with pytest.raises(DatasetError, match=r"val_step_00000007.json: .*version 2, expected 1\): move it away"):
        keep(tmp_path, "val", 7, [row(source, 5)])
    assert json.loads(path.read_text())["version"] == 2

    def failing(self):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(OSError, match="Input/output error"):
        keep(tmp_path, "val", 7, [row(source, 5)])
    monkeypatch.undo()
    assert json.loads(path.read_text())["version"] == 2


def test_what_is_not_finite_is_null(source, tmp_path):
    """As shuffled_cider of a single image."""
    found = row(source, 4) | {"metrics": {"accuracy": 0.4, "chance": math.nan, "loss": math.inf}}
    assert "0.4000" in table_of([found]) and "none" in table_of([found])
    assert kept(tmp_path, found).rows["numbers"]["metrics"] == {"accuracy": 0.4, "chance": None, "loss": None}
    assert "NaN" not in (tmp_path / FOLDER / "val_step_00000007.json").read_text()


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
    other = kept(tmp_path / "bb", row(source, 9), row(source, 5, task="there"))
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
    assert lines[2:] == ["left out: alone: not in both", "left out: there: not in both"]


def test_other_figures_have_intervals_and_are_compared(source, tmp_path):
    """Files of earlier versions have no samples: their main figures are compared."""

    def ranked(ranks: list[float]):
        ranks_NK = np.array([ranks, [1.0, math.nan]])
        found = Result(
            {"r": 0.5, "text_to_image_r1": 0.5, "floor": 0.0}, np.ones((2, 2)), samples={"text_to_image": ranks_NK}
        )
        metrics = {f"text_to_image_{name}": 0.0 for name in ("r1", "r5", "r10", "median_rank")} | found.metrics
        return row_of(source, dataclasses.replace(found, metrics=metrics), OPTIONS, "r", "floor", 1.0)

    one, other = kept(tmp_path / "a", ranked([1, 1])), kept(tmp_path / "b", ranked([9, 9]))
    line = line_of(ranked([1, 1]), "val", 7)
    assert line["interval"] == line["text_to_image_r1_interval"] == line["text_to_image_median_rank_interval"] == [1, 1]
    assert one.rows["numbers"]["samples"] == {"text_to_image": [[1, 1], [1, None]]}
    assert len(table_of([ranked([1, 1])]).splitlines()) == 2  # the main figure alone, for people
    cells = [line.split("  ") for line in comparison(one, other).splitlines()[1:]]
    # Of three captions in all the ranks 1, 1, 1 become 9, 9, 1.
    assert [words[1] for words in cells] == [
        "r",
        *(f"text_to_image_{name}" for name in ("r1", "r5", "r10", "median_rank")),
    ]
    assert ["-0.6667" in " ".join(words) for words in cells] == [False, True, True, False, False]
    assert "+8.0000" in " ".join(cells[-1])
    del other.rows["numbers"]["samples"]
    assert len(comparison(one, other).splitlines()) == 2


def test_other_labels_are_other_data(source, tmp_path):
    """Corrected ones change neither names nor sizes. Rows of earlier versions say nothing of them."""
    one, same, corrected, old = (
        kept(tmp_path / name, row(source, 2, asked=asked))
        for name, asked in (("a", "12ab"), ("b", "12ab"), ("c", "34cd"), ("d", ""))
    )
    del old.rows["numbers"]["asked"]
    for other in (same, old):
        assert len(comparison(one, other).splitlines()) == 2
    with pytest.raises(DatasetError, match="numbers: evaluated on different data"):
        comparison(one, corrected)


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
