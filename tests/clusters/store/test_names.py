from __future__ import annotations

import os
from pathlib import Path

import pytest

from clusters.store.names import is_record, records, step_and_file
from tests.clusters.store.made import made_run


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.yaml", True),
        ("ledger_rank_00000.jsonl", True),
        ("evaluations/val step_3.json", True),
        ("wandb/offline-run-20261129_100000-ab12/run-ab12.wandb", True),
        ("evaluations/größe [1] (copy).json", True),
        ("in_use.json", False),
        ("health/rank_00000.json", False),
        ("checkpoints/latest", False),
        ("../config.yaml", False),
        ("evaluations/../../config.yaml", False),
        ("/etc/passwd", False),
        ("evaluations//val.json", False),
        (".ssh/authorized_keys", False),
        ("evaluations/.val.json.123", False),
        ("evaluations\\val.json", False),
        ("a\nb", False),
        ("a/" * 9 + "b", False),
        ("x" * 201, False),
        ("a\udcff", False),
        ("", False),
    ],
)
def test_only_files_of_a_run_travel(name, expected):
    assert is_record(name) == expected


def test_links_and_unfinished_files_stay(tmp_path):
    run = made_run(tmp_path / "run", (1,))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("")
    (run / "link").symlink_to(tmp_path / "secret" / "key")
    (run / "folder").symlink_to(tmp_path / "secret")
    assert [name for name, _ in records(run)] == [
        "config.yaml",
        "evaluations/val.json",
        "events.jsonl",
        "metrics.jsonl",
    ]


def test_what_the_training_removes_meanwhile_is_left_out(tmp_path, monkeypatch):
    """Checkpoints are not looked into, and a file that has gone is none."""
    run = made_run(tmp_path / "run", (1,))
    listed, looked = os.walk, Path.lstat
    seen: list[str] = []

    def walk(top, **options):
        for folder, folders, files in listed(top, **options):
            seen.append(Path(folder).name)
            yield folder, folders, files

    def lstat(path):
        if path.name == "metrics.jsonl":
            raise FileNotFoundError(path)
        return looked(path)

    monkeypatch.setattr(os, "walk", walk)
    monkeypatch.setattr(Path, "lstat", lstat)
    assert [name for name, _ in records(run)] == ["config.yaml", "evaluations/val.json", "events.jsonl"]
    assert "checkpoints" not in seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("checkpoints/step_00000200/manifest.json", (200, "manifest.json")),
        ("checkpoints/step_123456789/manifest.json", (123456789, "manifest.json")),
        ("checkpoints/step_0000000200/manifest.json", None),
        ("checkpoints/latest", None),
        ("checkpoints/step_00000200/a/b", None),
        ("elsewhere/step_00000200/manifest.json", None),
    ],
)
def test_a_step_has_one_folder(name, expected):
    assert step_and_file(name) == expected
