"""Where the records of a run go: which sinks there are, and that none of them is in the way."""

from __future__ import annotations

import json
import sys

import pytest

from run.errors import EXIT_USER, USER_ERRORS, ConfigError
from run.metrics.expert_use import decision_names
from run.sinks.sinks import Sinks, check_packages
from tests.run.sinks.made import DENSE, loaded, record


@pytest.mark.parametrize(("mode", "started"), [("disabled", 0), ("offline", 1)])
def test_only_the_first_rank_has_sinks_and_wandb_only_where_it_is_wanted(mode, started, config, monkeypatch):
    seen = []
    monkeypatch.setattr("run.sinks.sinks.Wandb", lambda run, folder: seen.append(folder) or Quiet())
    run = loaded(config, f"tracking.wandb={mode}")
    Sinks(run, 0, is_first=False).write({"step": 1})
    assert not seen and not (run.folder / "metrics.jsonl").exists()
    sinks = Sinks(run, 0, is_first=True)
    sinks.write(record(run, 1))
    sinks.close()
    assert len(seen) == started and '"step": 1' in (run.folder / "metrics.jsonl").read_text()


class Quiet:
    def write(self, record): ...

    def close(self): ...


def test_nothing_of_others_is_imported_where_it_is_not_wanted(config, monkeypatch):
    for package in ("tensorboard", "prometheus_client", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    sinks = Sinks(loaded(config), 0, is_first=True)
    sinks.write(record(loaded(config), 1))
    sinks.close()


def test_all_at_once(config, tmp_path):
    run = loaded(config, "tracking.tensorboard=true", f"tracking.prometheus={tmp_path}/run.prom")
    sinks = Sinks(run, 0, is_first=True)
    sinks.write(record(run, 1))
    sinks.close()
    assert len(list((run.folder / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert "sparse_generalists_steps_done" in (tmp_path / "run.prom").read_text()


def test_one_that_fails_leaves_the_others(config, tmp_path, capsys):
    (tmp_path / "place").mkdir()
    run = loaded(config, "tracking.tensorboard=true", f"tracking.prometheus={tmp_path}/place/run.prom")
    (run.folder / "tensorboard").write_text("a file where its folder should be")
    sinks = Sinks(run, 0, is_first=True)
    sinks.write(record(run, 1))
    (tmp_path / "place" / "run.prom").unlink()
    (tmp_path / "place").rmdir()
    sinks.write(record(run, 2))
    sinks.write(record(run, 3))
    sinks.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert ["TensorBoard" in line for line in warnings] == [True, False] and "no Prometheus from here on" in warnings[1]
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("option", "package"), [("tensorboard=true", "tensorboard"), ("prometheus=/tmp/x.prom", "prometheus_client")]
)
def test_a_missing_package_is_one_line_with_what_to_install(option, package, config, monkeypatch):
    run = loaded(config, f"tracking.{option}")
    monkeypatch.setitem(sys.modules, package, None)
    name = option.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        Sinks(run, 0, is_first=True)
    assert str(error.value) == (
        f"tracking.{name} needs the package {package}, which is not installed: pip install -e '.[{name}]', or leave the option out"
    )
    assert issubclass(ConfigError, USER_ERRORS) and EXIT_USER == 2
    check_packages(loaded(config).tracking)


def test_tables_have_a_file_of_their_own_and_each_step_once(config):
    run = loaded(config)
    assert decision_names(run.model)
    table = {"experts": 4, "tasks": {}}
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        sinks = Sinks(run, start, is_first=True)
        for step in steps:
            made = record(run, step)
            sinks.write(made | {"expert_use": {"step": step} | table} if step % 2 else made)
        sinks.close()
    lines = [json.loads(line) for line in (run.folder / "expert_use.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1} | table, {"step": 3} | table]
    assert "expert_use" not in (run.folder / "metrics.jsonl").read_text()


def test_a_dense_run_has_no_table(config):
    run = loaded(config, DENSE)
    Sinks(run, 0, is_first=True).close()
    assert not (run.folder / "expert_use.jsonl").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tags=['']", "'' must have 1 to 64 characters"),
        ("prometheus=run.txt", "must end in .prom: node exporter reads no other files"),
    ],
)
def test_options_that_cannot_work_are_refused(option, message, config):
    with pytest.raises(ConfigError, match=message):
        loaded(config, f"tracking.{option}")


def test_what_happens_stands_among_the_events(config, capsys):
    run = loaded(config)
    sinks = Sinks(run, 3, is_first=True)
    sinks.tell("saved step_00000003")
    sinks.at(4)("val at step 4: better")  # before the record of its step
    sinks.write(record(run, 4) | {"alarms": ["routing has collapsed"], "skipped_steps": 2})
    sinks.close()
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["step"]) for event in events] == [
        ("resume", 3), ("note", 3), ("note", 4), ("alarm", 4), ("skipped", 4), ("stop", 4),
    ]  # fmt: skip
    assert events[0]["versions"]["torch"] and events[4]["text"].startswith("2 updates were left out")
    assert "alarm: routing has collapsed" in capsys.readouterr().out
    Sinks(run, 0, is_first=False).close()
    sinks = Sinks(run, 0, is_first=True)
    sinks.write(record(run, run.steps) | {"skipped_steps": 0})
    for diverged, kind in ((False, "end"), (True, "diverged")):
        sinks.close(diverged)
        assert json.loads((run.folder / "events.jsonl").read_text().splitlines()[-1])["kind"] == kind
