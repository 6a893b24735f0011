"""Where records go, when what is there fails."""

from __future__ import annotations

import json

import pytest

from run.config_file import load_config
from run.sinks import JsonLines, Sinks, Wandb, _numbered


class Broken:
    def log(self, record):
        raise ConnectionResetError("its helper is gone")

    def finish(self):
        raise ConnectionResetError("its helper is gone")

    def define_metric(self, *names, **options): ...


@pytest.mark.parametrize("breaks", ["start", "write", "close"])
def test_wandb_never_stops_the_training(breaks, config, tmp_path, monkeypatch, capsys):
    import wandb

    def init(**options):
        if breaks == "start":
            raise wandb.UsageError("no key\nmore of it")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    sink = Wandb(load_config(config), tmp_path)
    if breaks == "write":
        sink.write({"step": 1})
    sink.close()
    sink.close()
    said = capsys.readouterr().err
    assert said.count("warning: no wandb from here on (") == 1 and "more of it" not in said


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


def test_lists_become_numbers_for_wandb():
    assert _numbered("load", [[0.5, 0.25], [1.0]]) == {"load/0/0": 0.5, "load/0/1": 0.25, "load/1/0": 1.0}
    assert _numbered("lr", 0.1) == {"lr": 0.1}


@pytest.mark.parametrize(("mode", "started"), [("disabled", 0), ("offline", 1)])
def test_only_the_first_rank_has_sinks_and_wandb_only_where_it_is_wanted(mode, started, config, monkeypatch):
    seen = []
    monkeypatch.setattr("run.sinks.Wandb", lambda run, folder: seen.append(folder) or Quiet())
    run = load_config(config, [f"tracking.wandb={mode}"])
    run.folder.mkdir(parents=True)
    Sinks(run, 0, is_first=False).write({"step": 1})
    assert not seen and not (run.folder / "metrics.jsonl").exists()
    sinks = Sinks(run, 0, is_first=True)
    sinks.write({"step": 1, "samples_per_s": 1, "tokens_per_s": 1, "data_wait": 0, "grad_norm": 0, "lr": 0, "eta_s": 0})
    sinks.close()
    assert len(seen) == started and '"step": 1' in (run.folder / "metrics.jsonl").read_text()


class Quiet:
    def write(self, record): ...

    def close(self): ...
