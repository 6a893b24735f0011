"""A real training with every sink, that goes back to its checkpoint once: all say what metrics.jsonl says."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from run.metrics.names import metric_of
from tests.helpers.runs import records, train
from tests.run.sinks.test_tensorboard import expected, numbers, read
from tests.run.sinks.test_tracking_offline import OURS, inspected, of_kind

MODEL = "model.experts={preset: limoe, num_experts: 4}"


@pytest.mark.slow
def test_all_sinks_say_the_same(config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sinks = ("tracking.wandb=offline", "tracking.tensorboard=true", f"tracking.prometheus={tmp_path}/run.prom")
    options = (MODEL, "evaluate={every: 3, split: val, limit: 8}", *sinks)
    train(config, "steps=6", *options)
    folder = config.parent / "runs" / "tiny"
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    (folder / "checkpoints" / "latest").write_text("step_00000003")
    train(config, "steps=7", *options)
    lines = records(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]

    unknown = {key for line in lines for key in line if metric_of(key) is None}
    assert not unknown, "run/metrics/names.py has every figure"

    np.testing.assert_equal(numbers(read(folder)), expected(lines))

    by_step = {}
    for segment in sorted((folder / "wandb").glob("offline-run-*")):
        for row in (entry["item"] for entry in of_kind(inspected(segment), "history")):
            by_step[row["step"]] = {key: value for key, value in row.items() if not key.startswith(OURS)}
    told = [{key: value for key, value in line.items() if key != "alarms"} for line in lines]
    assert [by_step[step] for step in sorted(by_step)] == told

    with (tmp_path / "run.prom").open() as file:
        samples = [sample for family in text_string_to_metric_families(file.read()) for sample in family.samples]
    found = {sample.name.removeprefix("sparse_generalists_"): sample.value for sample in samples}
    assert (found["steps_done"], found["steps_planned"], found["running"]) == (7, 7, 0)
    assert found["learning_rate"] == lines[-1]["lr"]
    assert found["samples_total"] == sum(line["samples"] for line in lines[3:])
    load = [sample.value for sample in samples if sample.name.endswith("expert_load_ratio")]
    assert load == [share for row in lines[-1]["expert_load"] for share in row] and math.isfinite(sum(load))
