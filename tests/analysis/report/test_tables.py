"""What is told in tables."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from analysis.report.reading import RunFiles, read_files
from analysis.report.tables import configuration, differences, evaluations, events, ledger, preset_of, surroundings
from tests.analysis.report.synthetic import HOSTILE
from tests.helpers.places import ROOT


@pytest.fixture(scope="module")
def sparse(made) -> RunFiles:
    return read_files(made["sparse"])


@pytest.fixture(scope="module")
def dense(made) -> RunFiles:
    return read_files(made["dense"])


def without_events(run: RunFiles) -> RunFiles:
    return dataclasses.replace(run, events=(), metrics=dataclasses.replace(run.metrics, alarms=()))


def test_the_configuration_below_the_one_that_a_command_names_is_the_preset(tmp_path):
    name, options = preset_of("deepspeed train.py --config=configs/presets/limoe_b16.yaml a=b") or ("", {})
    assert name == "one_tower_b16.yaml" and options["model.depth"] == "12"
    (tmp_path / "my runs.yaml").write_text((ROOT / "configs" / "demo.yaml").read_text())
    name, options = preset_of(f"python train.py --config {shlex.quote(str(tmp_path / 'my runs.yaml'))}") or ("", {})
    assert name == "my runs.yaml" and options["data.tasks.shapes.kind"] == "classification"


@pytest.mark.parametrize(
    "words", ["python train.py", "--config", "--config 'open", "--config nowhere.yaml", "--config /dev/null"]
)
def test_commands_without_a_preset(words):
    assert preset_of(words) is None


def test_what_was_run(sparse):
    text = configuration([sparse])
    assert "What differs from demo.yaml" in text and ">steps</th><td>1000</td><td>400</td>" in text
    assert "model (" in text
    started = surroundings([sparse])
    assert (
        "0123456789abcdef with changes" in started and "python train.py --config configs/demo.yaml steps=400" in started
    )
    assert "2.13.0" in started and HOSTILE not in started
    assert "not known" in surroundings([without_events(sparse)]) and "not known" in configuration(
        [without_events(sparse)]
    )


def test_runs_are_told_apart(sparse, dense):
    assert ">seed</th><td>0</td><td>1</td>" in configuration([sparse, dense])
    text = differences([sparse, dense])
    assert "Evaluations: dense against sparse" in text and "95 % of it" in text and "loss/cifar10" in text
    rows = {"cifar10": dense.evaluations[0].rows["cifar10"] | {"digest": "other"}}
    other = dataclasses.replace(dense, evaluations=(dataclasses.replace(dense.evaluations[0], rows=rows),))
    assert "Evaluations: dense against sparse: none" in differences([sparse, other])


def test_evaluations_have_intervals_or_name_the_command(sparse):
    assert "0.4000 to 0.6000" in evaluations(sparse) and "without learning" in evaluations(sparse)
    assert f"python evaluate.py --run {sparse.folder}" in evaluations(dataclasses.replace(sparse, evaluations=()))


def test_bad_data_is_counted_and_listed(sparse):
    text = ledger(sparse)
    assert "shard_00000.tar" in text and "All entries" in text and HOSTILE not in text
    assert "Nothing of the data" in ledger(dataclasses.replace(sparse, faults=()))
    many = ledger(dataclasses.replace(sparse, faults=sparse.faults * 100))
    assert "The first 100 of 200 entries" in many and many.count("<tr>") < 110


def test_events_are_in_order_with_alarms_among_them(sparse):
    text = events(sparse)
    assert text.index(">resume<") < text.index(">alarm<") < text.index(">end<")
    assert "Saves, evaluations and other notes of sparse: the last 1 of 1" in text
    assert "has no events" in events(without_events(sparse))
