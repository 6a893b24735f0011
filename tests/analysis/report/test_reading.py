"""The files of a run folder, and what is said where some are missing or damaged."""

from __future__ import annotations

import json
import shutil

import pytest

from analysis.report.reading import check_run, flat, is_sound, read_files
from run.errors import ConfigError


def test_all_files_of_a_run_are_read(made):
    run = read_files(made["sparse"])
    assert run.name == "sparse" and run.is_sparse and run.has_ended and run.notes == ()
    assert [event.kind for event in run.starts] == ["start", "resume"] and run.starts[0].details["ranks"]["data"] == 2
    assert len(run.faults) == 2 and run.memory["measured"]["peak"] == 4.75
    assert [kept.split for kept in run.evaluations] == ["val"] and "cifar10" in run.evaluations[0].rows
    assert len(run.pictures) == 2 and run.interference["samples"] == 32 and len(run.samples["captions"]) == 6
    assert not read_files(made["dense"]).is_sparse


def test_a_run_of_which_only_the_configuration_is_there(made, tmp_path):
    shutil.copy(made["sparse"] / "config.yaml", tmp_path)
    run = read_files(tmp_path)
    assert not run.metrics.columns and not run.is_sparse and not run.has_ended and run.notes == ()


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no config\.yaml"):
        check_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML"):
        read_files(tmp_path)


def test_damaged_files_are_told_and_left_out(made, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(made["sparse"], folder)
    for name in ("analysis/samples.json", "analysis/interference.json", "memory.json"):
        (folder / name).write_text("{")
    (folder / "analysis" / "experts.json").write_text('{"tasks": 1}')
    (folder / "expert_use.jsonl").write_text("{}\n")
    (folder / "events.jsonl").write_text('{"step": -1}\n')
    (folder / "evaluations" / "val_step_00000999.json").write_text("{}")
    run = read_files(folder)
    told = " ".join(run.notes)
    for name in (
        "samples.json",
        "interference.json",
        "memory.json",
        "experts.json",
        "expert_use.jsonl",
        "events.jsonl",
        "val_step_00000999.json",
    ):
        assert name in told
    assert run.samples == {} and run.memory == {} and run.use is None and run.events == () and run.evaluations == ()


def test_the_newest_evaluation_of_a_split_counts(made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made["dense"], folder)
    path = next((folder / "evaluations").iterdir())
    content = json.loads(path.read_text()) | {"step": 1000}
    (folder / "evaluations" / "val_step_00001000.json").write_text(json.dumps(content))
    content["results"][0]["interval"] = ["a", 1]
    (folder / "evaluations" / "test_step_00000001.json").write_text(json.dumps(content))
    run = read_files(folder)
    assert [(kept.split, kept.step, len(kept.rows)) for kept in run.evaluations] == [
        ("test", 1000, 2),
        ("val", 1000, 3),
    ]
    assert "1 rows are damaged" in run.notes[0]


def test_rows_without_their_figure_are_not_sound():
    row = {"figure": "a", "floor": "b", "metrics": {"a": 1, "b": 0.5}, "interval": [0, 1]}
    assert is_sound(row)
    for change in (
        {"figure": "c"},
        {"interval": [0]},
        {"interval": None},
        {"metrics": {"a": "x", "b": 1}},
        {"metrics": []},
    ):
        assert not is_sound(row | change)
    assert not is_sound(None)


def test_options_are_shown_without_credentials():
    tree = {
        "path": "https://me:secret@host/pets?sig=secret",
        "shards": ["pipe:cat secret", "a-{0..1}.tar"],
        "init": "~/a",
    }
    assert "secret" not in str(flat(tree)) and flat(tree)["init"] == "~/a" and "a-{0..1}.tar" in flat(tree)["shards"]


def test_options_have_dotted_names():
    tree = {
        "steps": 3,
        "data": {"tasks": [{"name": "a", "path": ""}, {"kind": "x"}], "sizes": [1, True]},
        "init": None,
        "shards": [],
    }
    assert flat(tree) == {
        "steps": "3",
        "data.tasks.a.path": "(empty)",
        "data.tasks.1.kind": "x",
        "data.sizes": "[1, true]",
        "init": "none",
        "shards": "none",
    }
