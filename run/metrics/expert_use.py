"""How much experts are used while a run trains: summed up on the device, by task, and told at the log steps.

Legend: T tasks, N decisions, M modalities, E experts, X packed figures of a modality (model/moe/use.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from data.batch import Modality
from model.config import ModelConfig
from model.moe.use import ExpertUse, packed_width, unpacked

Record = dict[str, Any]
RECORDS = 200
"""So many records by task in a run, as they are long."""


def decision_names(model: ModelConfig) -> list[str]:
    """What is decided, in the order of the decisions: `3 attention` is the attention of block 3. With a text tower its names follow."""
    names = []
    towers = [("", model)]
    if text := model.text_tower_config():
        towers.append(("text ", text))
    for prefix, tower in towers:
        for layer in range(tower.depth):
            if tower.experts.is_sparse(layer, tower.depth):
                parts = ("attention", "ffn") if tower.experts.unit == "linear" else ("ffn",)
                names += [f"{prefix}{layer} {part}" for part in parts]
    return names


class UseByTask:
    """Sums since the last log step, and since the last record by task."""

    def __init__(self, model: ModelConfig, tasks: list[str], device: str) -> None:
        self.names, self.tasks, self.experts = decision_names(model), tasks, model.experts.num_experts
        shape = (len(tasks), len(self.names), len(Modality), packed_width(self.experts))
        self._sums = torch.zeros(*shape, dtype=torch.float64, device=device)
        self._by_task = torch.zeros(*shape, dtype=torch.float64)
        self._last = 0

    def add(self, task: int, use: ExpertUse) -> None:
        """Of one micro-batch."""
        if self.names:
            self._sums[task] += use.packed()

    def taken(self) -> Tensor:
        """The sums of this rank since the last call."""
        sums = self._sums.to("cpu", copy=True)
        self._sums.zero_()
        return sums

    def record(self, sums_TNMX: Tensor, step: int, total_steps: int) -> Record:
        """Figures of a log step from the sums of all data ranks. Now and then `expert_use`, what there was of each task since it was told
        last."""
        if not self.names:
            return {}
        self._by_task += sums_TNMX
        record = figures(unpacked(sums_TNMX.sum(dim=0)))
        part = step * RECORDS // max(total_steps, RECORDS)
        if part > self._last or step == total_steps:
            record["expert_use"] = {"step": step} | table(self.names, dict(zip(self.tasks, self._by_task, strict=True)))
            self._last = part
            self._by_task.zero_()
        return record


def figures(use: ExpertUse) -> Record:
    """expert_load: share of all asked pairs that each expert took, by decision; success: share of a modality's asked pairs that were
    taken at all, over all decisions and by decision (LIMoE's success rate); router_entropy: of the gate, in nats, by decision."""
    asked_N = use.asked_M.sum(dim=1)
    load_NE = use.taken_ME.sum(dim=1) / asked_N[:, None].clamp(min=1)
    record: Record = {
        "expert_load": rounded(load_NE),
        "expert_load_max": load_NE.max().item(),
        "router_entropy": rounded(use.entropy_M.sum(dim=1) / use.pairs_M.sum(dim=1).clamp(min=1)),
    }
    for modality in Modality:
        asked_N = use.asked_M[:, modality]
        if asked_N.sum() > 0:
            taken_N = use.taken_ME[:, modality].sum(dim=-1)
            record[f"success/{modality.name.lower()}"] = (taken_N.sum() / asked_N.sum()).item()
            record[f"success_by_decision/{modality.name.lower()}"] = rounded(taken_N / asked_N.clamp(min=1))
    return record


def table(names: list[str], by_task: dict[str, Tensor]) -> Record:
    """by_task: packed [N, M, X]. Sums, which can be added up, and what they are sums of; tasks that had nothing to route are left out."""
    all_uses = {task: unpacked(packed_NMX) for task, packed_NMX in by_task.items()}
    experts = next(iter(all_uses.values())).taken_ME.shape[-1]
    uses = {task: use for task, use in all_uses.items() if use.asked_M.any()}
    tasks = {task: {name: rounded(value, 2) for name, value in _named(use)} for task, use in uses.items()}
    return {"decisions": names, "experts": experts, "modalities": [m.name.lower() for m in Modality], "tasks": tasks}


def rounded(values: Tensor, digits: int = 4) -> list:
    return values.double().mul(10**digits).round().div(10**digits).tolist()


def _named(use: ExpertUse) -> list[tuple[str, Tensor]]:
    return [(field.name.split("_")[0], getattr(use, field.name)) for field in dataclasses.fields(use)]
