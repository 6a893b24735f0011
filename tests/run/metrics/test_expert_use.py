"""Figures of the experts' use by hand, and the record by task."""

from __future__ import annotations

import torch

from data.batch import Modality
from model.config import ModelConfig, TextTowerConfig
from model.moe.config import ExpertConfig
from model.moe.use import ExpertUse, added, stacked, unpacked, unused
from run.metrics.expert_use import UseByTask, decision_names, figures

MODEL = ModelConfig(
    depth=2, experts=ExpertConfig(num_experts=2, placement="odd", router="token", unit="ffn_linear"), tasks=("a", "b")
)
DENSE = ModelConfig(depth=2, experts=ExpertConfig(placement="none"))
KINDS = len(Modality)


def use(image: list[float], asked: float, text: tuple[float, float] = (0.0, 0.0)) -> ExpertUse:
    """Of one decision."""
    taken_NME = torch.zeros(1, KINDS, 2)
    taken_NME[0, Modality.IMAGE], taken_NME[0, Modality.TEXT] = torch.tensor(image), torch.tensor(text)
    asked_NM = torch.zeros(1, KINDS)
    asked_NM[0, Modality.IMAGE], asked_NM[0, Modality.TEXT] = asked, sum(text)
    return ExpertUse(taken_NME, taken_NME / 2, asked_NM, torch.zeros_like(asked_NM), asked_NM * 0.5)


def test_packed_figures_come_back():
    one = use([3, 4], 8)
    assert torch.equal(unpacked(one.packed()).taken_ME, one.taken_ME)
    assert torch.equal(unpacked(one.packed()).entropy_M, one.entropy_M)
    assert unused(2, KINDS, torch.zeros(())).taken_ME.shape == (0, KINDS, 2)
    assert torch.equal(added([one, one]).weight_ME, 2 * one.weight_ME)
    assert stacked([one, one, one]).asked_M.shape == (3, 1, KINDS)


def test_figures_by_hand():
    record = figures(use([3, 4], 8, (2, 0)))
    assert record["expert_load"] == [[0.5, 0.4]]
    assert record["success/image"] == 7 / 8 and record["success_by_decision/text"] == [1.0]
    assert record["router_entropy"] == [0.5] and "success/video" not in record


def test_by_task_it_is_told_at_times_and_adds_up():
    by_task = UseByTask(MODEL, ["a", "b"], "cpu")
    told = []
    for step in range(1, 401):
        by_task.add(0, use([1, 1], 2))
        if step == 7:
            by_task.add(1, use([0, 0], 0, (5, 0)))
        record = by_task.record(by_task.taken(), step, 400)
        if "expert_use" in record:
            told.append(record["expert_use"])
    assert [row["step"] for row in told[:3]] == [2, 4, 6] and len(told) == 200
    assert told[0]["decisions"] == ["0 ffn"] and told[0]["modalities"] == ["text", "image", "video"]
    assert told[0]["tasks"] == {
        "a": {
            "taken": [[[0, 0], [2, 2], [0, 0]]],
            "weight": [[[0, 0], [1, 1], [0, 0]]],
            "asked": [[0, 4, 0]],
            "unasked": [[0, 0, 0]],
            "entropy": [[0, 2, 0]],
        }
    }
    assert told[3]["tasks"]["b"]["taken"] == [[[5, 0], [0, 0], [0, 0]]]
    assert sum(row["tasks"]["a"]["asked"][0][1] for row in told) == 800


def test_dense_runs_have_none():
    dense = UseByTask(DENSE, ["a"], "cpu")
    dense.add(0, unused(8, KINDS, torch.zeros(())))
    assert dense.record(dense.taken(), 1, 1) == {}


def test_decisions_have_names():
    experts = ExpertConfig(num_experts=2, placement="odd", router="token")
    assert decision_names(ModelConfig(depth=4, experts=experts)) == ["0 attention", "0 ffn", "2 attention", "2 ffn"]
    text = TextTowerConfig(width=8, depth=1, heads=1, ffn=8)
    assert decision_names(ModelConfig(depth=2, experts=experts, text_tower=text))[2:] == [
        "text 0 attention",
        "text 0 ffn",
    ]
    assert decision_names(DENSE) == []
