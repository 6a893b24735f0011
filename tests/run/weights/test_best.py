"""The best checkpoint of a run."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation.config import EvaluateConfig
from parallel.checkpoints import Fragment, published, save
from parallel.placement import Placement
from run.errors import ConfigError
from run.weights.best import Best, chosen_step

NAMES = ["a/accuracy", "a/loss", "b/loss"]
CONFIG = EvaluateConfig(every=10, keep_best="a/accuracy", patience=2)


def followed(config: EvaluateConfig, figure: str, values: list[float]) -> tuple[Best, list[str]]:
    lines: list[str] = []
    best = Best.of(config, None, NAMES)
    for number, value in enumerate(values, 1):
        best = best.after(10 * number, {f"val/{figure}": value, "evaluation_s": 1.0}, lines.append)
    return best, lines


def test_the_best_stays_the_best_until_a_better_one():
    best, lines = followed(CONFIG, "a/accuracy", [0.2, 0.5, 0.5])
    assert (best.step, best.value, best.since, best.has_stalled) == (20, 0.5, 1, False)
    assert lines == ["best a/accuracy so far: 0.2000 at step 10", "best a/accuracy so far: 0.5000 at step 20"]
    assert followed(CONFIG, "a/accuracy", [0.5, 0.4, 0.3])[0].has_stalled
    assert best.after(40, {}, lines.append) == best  # no evaluation was due


def test_of_losses_less_is_better():
    best, _ = followed(EvaluateConfig(every=1, keep_best="a/loss"), "a/loss", [2.0, 1.0, 3.0])
    assert best.step == 20 and not best.has_stalled


def test_what_is_not_finite_is_never_the_best():
    best, _ = followed(EvaluateConfig(every=1, keep_best="a/loss"), "a/loss", [math.nan, 2.0, math.nan, 1.0])
    assert (best.step, best.value) == (40, 1.0)
    assert followed(CONFIG, "a/accuracy", [math.nan])[0].state is None


def test_it_goes_on_after_a_resume():
    best, _ = followed(CONFIG, "a/accuracy", [0.5, 0.4])
    found: Any = SimpleNamespace(state={"best": best.state})
    assert Best.of(CONFIG, found, NAMES) == best


@pytest.mark.parametrize("options", [{}, {"keep_best": "b/loss"}, {"keep_best": "a/accuracy", "split": "test"}])
def test_where_it_is_followed_no_more_it_stays_until_another_is_found(options):
    best, lines = followed(CONFIG, "a/accuracy", [0.5, 0.4])
    found: Any = SimpleNamespace(state={"best": best.state})
    config = EvaluateConfig(every=10, **options)
    other = Best.of(config, found, NAMES)
    assert (other.step, other.since) == (10, 0)
    assert other.state == {"figure": "val/a/accuracy", "step": 10, "value": 0.5, "since": 0}
    figure = f"{config.split}/{config.keep_best or 'a/accuracy'}"
    after = other.after(30, {figure: 0.1}, lines.append)
    if not options:
        assert after == other
        assert Best.of(CONFIG, SimpleNamespace(state={"best": after.state}), NAMES).value == 0.5  # type: ignore[arg-type]
    else:
        assert (after.step, after.value, after.figure) == (30, 0.1, figure)


def test_figures_of_another_evaluation_are_no_measure():
    """Half of the first two samples right says nothing of a third of all."""
    lines: list[str] = []
    few, whole = ({"a": {"data": "d", "limit": limit, "views": [1, 1]}} for limit in (2, None))
    best = Best.of(CONFIG, None, NAMES).after(10, {"val/a/accuracy": 0.5}, lines.append, few)
    best = best.after(20, {"val/a/accuracy": 0.4}, lines.append, few)
    found: Any = SimpleNamespace(state=json.loads(json.dumps({"best": best.state})))
    same, other = (
        Best.of(CONFIG, found, NAMES).after(30, {"val/a/accuracy": 0.3}, lines.append, m) for m in (few, whole)
    )
    assert (same.step, same.value, same.since) == (10, 0.5, 2) and (other.step, other.value, other.since) == (
        30,
        0.3,
        0,
    )
    assert lines[1:] == [
        "best a/accuracy begins anew, as it is another evaluation: limit was 2, now None",
        "best a/accuracy so far: 0.3000 at step 30",
    ]
    old: Any = SimpleNamespace(state={"best": {key: value for key, value in best.state.items() if key != "measured"}})  # type: ignore[union-attr]
    assert Best.of(CONFIG, old, NAMES).after(30, {"val/a/accuracy": 0.3}, lines.append, whole).step == 10


@pytest.mark.parametrize("figure", ["a/acuracy", "a", "a/"])
def test_a_figure_that_is_not_there_is_named_at_the_start(figure):
    said = f"keep_best='{figure}': there is no such figure; there are a/accuracy, a/loss$"
    with pytest.raises(ConfigError, match=said):
        Best.of(EvaluateConfig(every=1, keep_best=figure), None, NAMES)


@pytest.mark.parametrize(
    "options", [{"every": 5, "patience": 2}, {"keep_best": "a/loss"}, {"every": 5, "patience": -1}]
)
def test_options_that_need_others(options):
    with pytest.raises(ValueError, match="needs the one before"):
        EvaluateConfig(**options)


def test_its_checkpoint_stays_and_is_found(tmp_path):
    fragments = [Fragment("w", Placement((2,)), 0, True, {"weight": torch.zeros(2)})]
    best = Best(CONFIG, 2, 0.5, figure="val/a/accuracy")
    for step in range(1, 6):
        state = {"best": best.state} if step >= 2 else {}
        save(tmp_path / "checkpoints", step, fragments, state, keep=2, spared=2)
    assert [folder.name[-1] for folder in published(tmp_path / "checkpoints")] == ["5", "4", "2"]
    assert chosen_step(tmp_path, "best") == 2 and chosen_step(tmp_path, 4) == 4 and chosen_step(tmp_path, None) is None
    save(tmp_path / "other" / "checkpoints", 1, fragments, {})
    with pytest.raises(ConfigError, match="does not know its best checkpoint"):
        chosen_step(tmp_path / "other", "best")
