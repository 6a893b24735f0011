"""When routing is said to have gone wrong, and what for."""

from __future__ import annotations

import torch

from model.config import ModelConfig
from model.moe.config import ExpertConfig
from model.moe.layer import DispatchPath
from run.metrics.alarms import Alarms
from run.metrics.expert_use import UseByTask
from tests.helpers.batches import classification
from tests.helpers.models import make, tiny

MODEL = ModelConfig(
    depth=2, experts=ExpertConfig(num_experts=4, top_k=2, placement="odd", router="token", unit="ffn_linear")
)
EVEN, TWO, ONE_DEAD = [0.25] * 4, [0.5, 0.48, 0.01, 0.01], [0.4, 0.3, 0.3, 0.0]


def told(
    *loads: list[float], after_steps: int = 20, every: int = 10, model: ModelConfig = MODEL
) -> list[tuple[str, ...]]:
    """What each log step tells of one decision with these loads."""
    alarms, lines = Alarms.of(model, after_steps), []
    for load in loads:
        alarms, new = alarms.after({"expert_load": [load]}, every)
        lines.append(new)
    return lines


def test_a_collapse_is_told_once_when_it_has_lasted_long_enough():
    first, second, third = told(TWO, TWO, TWO)
    assert not first and not third
    assert len(second) == 1 and second[0].startswith("routing has collapsed at 0 ffn: 2 experts took over 95% of all")


def test_a_collapse_that_was_over_is_told_again():
    lines = told(TWO, EVEN, TWO, TWO, EVEN, TWO, TWO)
    assert [bool(line) for line in lines] == [False, False, False, True, False, False, True]


def test_a_dead_expert_is_named():
    (line,) = told(ONE_DEAD, ONE_DEAD)[1]
    assert line == "dead experts at 0 ffn: 3 (each took less than 1% of an equal share for 20 steps)"


def test_dropped_pairs_do_not_count():
    """Of half the pairs that found a slot, each expert took a quarter."""
    assert told([0.125] * 4, [0.125] * 4) == [(), ()]


def test_without_tokens_nothing_is_said():
    assert told([0.0] * 4, [0.0] * 4) == [(), ()]


def test_it_can_be_off_and_says_nothing_of_dense_runs():
    assert told(TWO, TWO, TWO, after_steps=0) == [(), (), ()]
    assert Alarms.of(ModelConfig(depth=2, experts=ExpertConfig(placement="none")), 20).after({}, 30)[1] == ()


def test_as_many_experts_as_choices_cannot_collapse():
    model = ModelConfig(depth=2, experts=ExpertConfig(num_experts=2, top_k=2, placement="odd", unit="ffn_linear"))
    assert told([0.5, 0.5], [0.5, 0.5], model=model) == [(), ()]


def test_how_many_are_dead_is_known():
    alarms = Alarms.of(MODEL, 20)
    for _ in range(2):
        assert alarms.figures == {"dead_experts": 0}
        alarms, _ = alarms.after({"expert_load": [[0.5, 0.5, 0, 0]]}, 10)
    assert alarms.figures == {"dead_experts": 2}
    assert Alarms.of(MODEL, 0).figures == {}


def test_a_collapsed_router_is_told_by_what_its_model_reports():
    """A gate of zeros gives every token the first experts."""
    config = tiny("token", {"noise": "none"})
    objective = make(config)
    for path in (module for module in objective.modules() if isinstance(module, DispatchPath)):
        torch.nn.init.zeros_(path.router.gate.weight)
    use, alarms, told = UseByTask(config, ["shapes"], "cpu"), Alarms.of(config, 20), []
    for step in (10, 20, 30):
        use.add(0, objective(classification(), noise=step).use)
        alarms, lines = alarms.after(use.record(use.taken(), step, 100), 10)
        told.append(lines)
    assert not told[0] and not told[2]
    collapse, deaths = told[1]
    assert "collapsed at 0 attention, 0 ffn" in collapse and "dead experts at 0 attention: 2, 3; 0 ffn: 2, 3" in deaths
