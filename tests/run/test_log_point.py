"""A step with its evaluation and its record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation.config import EvaluateConfig
from evaluation.in_training import Found
from parallel.checkpoints import CheckpointError
from run.log_point import LogPoint

CONFIG = EvaluateConfig(every=2, keep_best="a/accuracy", patience=1)


def checkpoint(**state: Any) -> Any:
    return SimpleNamespace(folder=Path("runs/a/checkpoints/step_00000004"), step=4, state=json.loads(json.dumps(state)))


def after(last: LogPoint, found: Found, loss: float = 0.5) -> tuple[LogPoint, list[dict[str, Any]], list[str]]:
    """Step 4 -> (the log point, what the sinks were given, phases)."""
    written, phases = list[dict[str, Any]](), list[str]()
    sinks: Any = SimpleNamespace(at=lambda step: lambda line: None, write=written.append)
    evaluation: Any = SimpleNamespace(found=lambda step, tell, alive, is_asked: found)
    stop: Any = SimpleNamespace(requested=False)
    record = lambda seconds: {"step": 4, "loss/a": loss, "step_s": 10 - seconds}  # noqa: E731
    return last.next(4, record, evaluation, sinks, stop, phases.append), written, phases


def test_a_record_has_its_evaluation_and_not_its_time():
    figures = {"val/a/accuracy": 0.75, "evaluation_s": 3.0}
    last, written, phases = after(LogPoint.of(CONFIG, None, ["a/accuracy"]), Found(figures, 3.0))
    assert written == [last.record] == [{"step": 4, "loss/a": 0.5, "step_s": 7.0} | figures]
    assert phases == ["evaluate", "report"] and not last.stops and not last.is_owed
    assert last.best.step == 4 and last.state == {"best": last.best.state}


def test_no_better_figure_or_a_request_ends_the_run():
    first, _, _ = after(LogPoint.of(CONFIG, None, ["a/accuracy"]), Found({"val/a/accuracy": 0.75}))
    second, written, _ = after(first, Found({"val/a/accuracy": 0.5}))
    assert second.stops and second.best.has_stalled and written
    third, written, _ = after(first, Found(is_asked=True))
    assert third.stops and not third.best.has_stalled and written


@pytest.mark.parametrize("loss", [0.5, math.nan, math.inf])
def test_a_record_waits_in_the_checkpoint_for_its_evaluation(loss):
    first = LogPoint.of(CONFIG, None, ["a/accuracy"])
    put_off, written, _ = after(first, Found(seconds=3.0, is_asked=True, is_put_off=True), loss)
    assert put_off.stops and put_off.is_owed and not written
    again = LogPoint.of(CONFIG, checkpoint(**put_off.state), ["a/accuracy"])
    assert again.is_owed and not again.stops and again.record == pytest.approx(put_off.record, nan_ok=True)
    last, written, _ = after(again, Found({"val/a/accuracy": 0.75}), loss)
    assert len(written) == 1 and not last.is_owed and last.best.step == 4 and "owed" not in last.state


@pytest.mark.parametrize("owed", ["", "{", "[]", "4", '{"step": 5}', '{"loss": 1}', 4, {"step": 4}, "[" * 100_000])
def test_what_is_no_record_of_the_step_is_named(owed):
    with pytest.raises(CheckpointError, match=r"step_00000004: state.owed is not the record of step 4: changed since"):
        LogPoint.of(CONFIG, checkpoint(owed=owed), ["a/accuracy"])
