"""Offline runs, read back with wandb's own reader (`wandb leet inspect`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from run.metrics.expert_use import decision_names
from run.sinks.drawing import heat_map
from run.sinks.tracking import Wandb
from tests.helpers.runs import tiny_config
from tests.run.sinks.made import DENSE, loaded, record, with_metrics


def two_starts(world, folder, *overrides: str):
    """-> (the run, its lines of metrics.jsonl, (folder, entries) of each start as wandb reads it); the second goes on from step 3."""
    options = ("tracking.wandb=offline", "tracking.tags=[tiny]", "tracking.group=routers")
    run = loaded(tiny_config(world, folder), *options, *overrides)
    lines, segments = [], []
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for start, steps in ((0, range(1, 6)), (3, range(4, 8))):
            made = [record(run, step, luck=start) for step in steps]
            sink = Wandb(run, run.folder)
            for some in made:
                sink.write(some)
            sink.close()
            lines = with_metrics(run, made, start)
            (segment,) = set((run.folder / "wandb").glob("offline-run-*")) - {known for known, _ in segments}
            segments.append((segment, inspected(segment)))
    return run, lines, segments


@pytest.fixture(scope="module")
def sparse(world, tmp_path_factory):
    return two_starts(world, tmp_path_factory.mktemp("sparse"))


def inspected(folder, *options: str) -> list[dict]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines()]


def of_kind(entries: list[dict], kind: str) -> list[dict]:
    return [entry[kind] for entry in entries if entry["type"] == kind]


OURS = ("_", "maps/", "spread/", "evaluation.")
"""Keys that wandb adds, and those of what is drawn."""


def test_what_wandb_reads_of_two_starts_is_what_the_json_lines_say(sparse):
    _, lines, segments = sparse
    by_step = {}
    for _, entries in segments:  # in the order in which `wandb sync` sends them
        for row in (entry["item"] for entry in of_kind(entries, "history")):
            by_step[row["step"]] = {key: value for key, value in row.items() if not key.startswith(OURS)}
            assert row["step"] == row["_step"]
    told = [{key: value for key, value in line.items() if key != "alarms"} for line in lines]
    assert told[3]["loss/shapes"] is None
    told[3]["loss/shapes"] = "NaN"  # so wandb calls it
    assert [by_step[step] for step in sorted(by_step)] == told


def test_an_alarm_is_an_alert(sparse):
    _, lines, segments = sparse
    alerts = [alert for _, entries in segments for alert in of_kind(entries, "alert")]
    assert [alert["text"] for alert in alerts] == [f"{alarm} (step 6)" for alarm in lines[5]["alarms"]]
    assert all(alert["level"] == "WARN" and len(alert["title"]) < 64 for alert in alerts)


def test_the_configuration_is_keys_that_can_be_filtered(sparse):
    _, _, segments = sparse
    (summary,) = inspected(segments[0][0], "--summary")
    config = summary["config"]
    assert config["model"]["experts"]["num_experts"] == 4 and config["optimizer"]["warmup_steps"] == 1
    assert config["data"]["tasks"]["shapes"]["batch_size"] == 4
    assert (summary["tags"], of_kind(segments[0][1], "run")[0]["run_group"]) == (["tiny"], "routers")
    assert not any(isinstance(value, str) and "\n" in value for value in config.values()), "a text that no filter reads"


def test_credentials_stay_here(world, tmp_path, monkeypatch):
    """Neither in the configuration nor in the command, which wandb keeps as well."""
    override = "data.tasks.shapes.shards=['https://user:s3cret@host/shapes-000000.tar?token=t0ken']"
    command = ["train.py", "--config", "demo.yaml", override]
    monkeypatch.setattr(sys, "argv", command)
    _, _, segments = two_starts(world, tmp_path, override)
    for folder, entries in segments:
        assert "s3cret" not in str(entries) and "t0ken" not in str(entries)
        (summary,) = inspected(folder, "--summary")
        assert summary["config"]["data"]["tasks"]["shapes"]["shards"] == ["https://***@host/shapes-000000.tar?***"]
        arguments = next(place["args"] for place in of_kind(entries, "environment") if "args" in place)
        assert arguments[:2] == ["--config", "demo.yaml"] and "https://***@host/shapes-000000.tar?***" in arguments[2]
    assert sys.argv == command


def test_evaluations_are_figures_of_the_run_and_a_table(sparse):
    _, lines, segments = sparse
    folder, _ = segments[-1]
    (found,) = inspected(folder, "--summary")
    value = lines[5]["val/shapes/accuracy"]
    assert found["summary"]["val/shapes/accuracy"] == {"last": value, "min": value, "max": value}
    (page,) = (folder / "files" / "media" / "html").glob("evaluation_*.html")
    assert "<td>val/shapes/accuracy</td><td>3.625</td>" in page.read_text()


def test_lists_are_heat_maps_and_spreads_and_no_charts(sparse):
    run, lines, segments = sparse
    folder, entries = segments[0]
    row = of_kind(entries, "history")[0]["item"]
    picture = Image.open(folder / "files" / row["maps/expert_load.path"])
    assert (np.asarray(picture) == heat_map(lines[0]["expert_load"], decision_names(run.model))).all()
    assert sum(row["spread/router_entropy.values"]) == len(lines[0]["router_entropy"])
    (summary,) = inspected(folder, "--summary")
    assert not any(isinstance(value, list) for value in summary["summary"].values())
    assert not any(key.startswith("expert_load/") for key in row)


def test_a_dense_run_has_the_numbers_of_its_records_alone(world, tmp_path):
    _, lines, segments = two_starts(world, tmp_path, DENSE)
    keys = {key for _, entries in segments for row in of_kind(entries, "history") for key in row["item"]}
    figures = {key for line in lines for key in line}
    assert {key for key in keys if not key.startswith(("_", "evaluation."))} == figures
    assert not [key for key in figures if "expert" in key or "router" in key]
