"""What Prometheus' own library parses of the file is what metrics.jsonl says, in base units."""

from __future__ import annotations

import math
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from run.errors import ConfigError
from run.metrics.expert_use import decision_names
from run.metrics.names import METRICS, OF_PROMETHEUS
from run.sinks.prometheus import Prometheus
from tests.run.sinks.made import DENSE, loaded, record, with_metrics

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def run(config, tmp_path):
    return loaded(config, f"tracking.prometheus={tmp_path}/run.prom", "tracking.project=lab")


def read(run) -> Series:
    """By name and labels, of which job and run are looked at here."""
    found: Series = {}
    with open(run.tracking.prometheus) as file:
        for family in text_string_to_metric_families(file.read()):
            for sample in family.samples:
                labels = dict(sample.labels)
                assert (labels.pop("job"), labels.pop("run")) == ("lab", "tiny")
                place = (sample.name.removeprefix("sparse_generalists_"), frozenset(labels.items()))
                assert place not in found
                found[place] = sample.value
    return found


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_figures_are_those_of_the_json_lines_in_base_units(run):
    sink = Prometheus(run, 0)
    records = [record(run, step) for step in (5, 6)]
    for made in records:
        sink.write(made)
    found = read(run)
    before, last = with_metrics(run, records)
    stamp = found.pop(at("last_record_timestamp_seconds"))
    assert abs(time.time() - stamp) < 60
    expected = {
        at("steps_planned"): 10, at("running"): 1, at("steps_done"): 6,
        at("learning_rate"): last["lr"], at("gradient_norm"): 2.5, at("family_gradient_norm", family="dense"): 1.5,
        at("samples_per_second"): 40, at("tokens_per_second"): 400,
        at("modality_tokens_per_second", modality="image"): 300, at("step_seconds"): 0.25,
        at("phase_seconds", phase="data"): 0.125, at("data_wait_ratio"): 0.5, at("remaining_seconds"): 2.5,
        at("bad_shards"): 1, at("lost_bytes"): 600, at("model_flops_utilisation_ratio"): 0.375,
        at("model_flops_per_second"): 1.25e12, at("memory_peak_bytes"): 1.5 * 2**30,
        at("loss_nats", task="shapes"): last["loss/shapes"],
        # Not drawn in step 6: as it was.
        at("loss_nats", task="captions"): before["loss/captions"],
        # Numbers since the last record: their sums.
        at("samples_total"): before["samples"] + last["samples"], at("faults_total"): 0,
        at("skipped_steps_total"): 2, at("task_tokens_total", task="shapes"): 300,
        at("task_tokens_total", task="captions"): 50, at("alarms_total"): len(last["alarms"]),
        at("evaluation", split="val", task="shapes", figure="accuracy"): last["val/shapes/accuracy"],
        at("evaluation", split="val", task="captions", figure="CIDEr-D"): last["val/captions/CIDEr-D"],
        at("evaluation_seconds"): 0.5, at("success_ratio", modality="image"): 0.875,
        at("expert_load_max_ratio"): last["expert_load_max"],
    }  # fmt: skip
    for task in run.data.tasks:
        expected.setdefault(at("task_tokens_total", task=task.name), 0)
        expected.setdefault(at("task_faults_total", task=task.name), 0)
    for row, name in enumerate(decision_names(run.model)):
        expected[at("router_entropy_nats", decision=name)] = last["router_entropy"][row]
        expected[at("decision_success_ratio", decision=name, modality="image")] = 0.75
        for expert in range(4):
            place = at("expert_load_ratio", decision=name, expert=str(expert))
            expected[place] = last["expert_load"][row][expert]
    assert found == expected


@pytest.mark.parametrize("overrides", [(), (DENSE,)])
def test_counters_are_there_before_anything_is_counted(run, config, tmp_path, overrides):
    """A rate or an alert sees what a counter gains: one that is born with its first alarm has gained nothing."""
    run = loaded(config, f"tracking.prometheus={tmp_path}/run.prom", "tracking.project=lab", *overrides)
    Prometheus(run, 0)
    found = read(run)
    names = ["skipped_steps_total", "samples_total", "faults_total", *([] if overrides else ["alarms_total"])]
    tasks = [at(name, task=t.name) for name in ("task_tokens_total", "task_faults_total") for t in run.data.tasks]
    assert {place: 0.0 for place in (*map(at, names), *tasks)} == {
        place: value for place, value in found.items() if place[0].endswith("_total")
    }


def test_a_loss_that_is_no_number_is_none(run):
    sink = Prometheus(run, 0)
    sink.write(record(run, 4))
    assert math.isnan(read(run)[at("loss_nats", task="shapes")])


def test_a_stale_run_can_be_seen(run, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])

    def seen():
        found = read(run)
        names = ("running", "last_record_timestamp_seconds", "steps_done", "steps_planned")
        return [found[at(name)] for name in names]

    sink = Prometheus(run, 3)
    assert seen() == [1, 1000, 3, 10], "from the start on, and nothing of the start before"
    clock[0] = 1060.0
    sink.write(record(run, 4))
    clock[0] = 2000.0
    assert seen() == [1, 1060, 4, 10], "a run that was killed stays so"
    sink.close()
    assert seen() == [0, 1060, 4, 10]


def test_a_resume_begins_anew(run):
    sink = Prometheus(run, 0)
    sink.write(record(run, 5))
    resumed = Prometheus(run, 3)
    assert at("loss_nats", task="captions") not in read(run)
    resumed.write(record(run, 4))
    found = read(run)
    assert found[at("samples_total")] == 20 and found[at("steps_done")] == 4


def test_the_number_of_series_is_bounded(config, tmp_path):
    """By decisions x experts: each record has the same series again."""
    run = loaded(
        config, f"tracking.prometheus={tmp_path}/run.prom", "tracking.project=lab", "model.experts.num_experts=8"
    )
    sink = Prometheus(run, 0)
    counts = []
    for step in (5, 6, 7, 8, 9, 10):
        sink.write(record(run, step))
        counts.append(len(read(run)))
    others = 40  # with two tasks and one modality
    assert counts == [counts[0], *[2 * 8 + 2 + 2 + others] * 5] and counts[0] < counts[1]


def test_a_dense_run_has_nothing_of_experts(config, tmp_path):
    run = loaded(config, DENSE, f"tracking.prometheus={tmp_path}/run.prom", "tracking.project=lab")
    Prometheus(run, 0).write(record(run, 5))
    names = " ".join(name for name, _ in read(run))
    assert "loss_nats" in names and not re.search("expert|router|success|alarms", names)


def test_every_metric_has_a_type_and_a_help(run):
    sink = Prometheus(run, 0)
    sink.write(record(run, 6))
    with open(run.tracking.prometheus) as file:
        families = {f.name: f for f in text_string_to_metric_families(file.read())}
    for metric in (*METRICS, *OF_PROMETHEUS):
        family = families.get(metric.full_name.removesuffix("_total") if metric.is_sum else metric.full_name)
        if family is not None:
            assert family.documentation == metric.about
            assert family.type == ("counter" if metric.is_sum else "gauge")
    assert len(families) > 30


def test_readers_see_whole_files_alone(run, monkeypatch, tmp_path):
    sink = Prometheus(run, 0)
    before = read(run)

    def broken(registry, escaping):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prometheus_client.exposition.generate_latest", broken)
    with pytest.raises(OSError, match="No space left"):
        sink.write(record(run, 5))
    assert read(run) == before and [path.name for path in tmp_path.glob("run.prom*")] == ["run.prom"]


def test_a_folder_that_is_not_there_is_one_line(config, tmp_path):
    run = loaded(config, f"tracking.prometheus={tmp_path}/gone/run.prom")
    with pytest.raises(ConfigError, match=r"gone/run.prom: No such file or directory; name a .prom file in the folder"):
        Prometheus(run, 0)
