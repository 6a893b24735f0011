"""Where records go, when what is there fails."""

from __future__ import annotations

import json

import pytest

from parallel.health.claim import FolderError
from run.config_file import load_config
from run.sinks.json_lines import JsonLines
from run.sinks.sinks import Sinks


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


@pytest.mark.parametrize(("mode", "started"), [("disabled", 0), ("offline", 1)])
def test_only_the_first_rank_has_sinks_and_wandb_only_where_it_is_wanted(mode, started, config, monkeypatch):
    seen = []
    monkeypatch.setattr("run.sinks.Wandb", lambda run, folder: seen.append(folder) or Quiet())
    run = load_config(config, [f"tracking.wandb={mode}"])
    run.folder.mkdir(parents=True)
    Sinks(run, 0, is_first=False).write({"step": 1})
    assert not seen and not (run.folder / "metrics.jsonl").exists()
    sinks = Sinks(run, 0, is_first=True)
    sinks.write(
        {
            "step": 1,
            "samples_per_s": 1,
            "tokens_per_s": 1,
            "data_wait": 0,
            "grad_norm": 0,
            "lr": 0,
            "eta_s": 0,
            "faults": 0,
        }
    )
    sinks.close()
    assert len(seen) == started and '"step": 1' in (run.folder / "metrics.jsonl").read_text()


class Quiet:
    def write(self, record): ...

    def close(self): ...
