"""What a run tells about itself: sums on the device between two log points.

A log record is a flat dict; run/sinks/sinks.py takes it further.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.batch import Modality
from data.shards.files import INFO_FILE
from data.stream.faults import Loss
from data.stream.micro_batch import MicroBatch
from model.config import ModelConfig
from model.objective import Losses
from parallel.collectives import maximum, total
from parallel.engine import StepInfo
from parallel.mesh import Mesh
from parallel.norms import FAMILIES

Record = dict[str, Any]


class Meter:
    """Sums between two log points. Nothing waits for the device until `record`, which all ranks call together."""

    def __init__(self, losses: dict[str, Loss], model: ModelConfig, mesh: Mesh) -> None:
        """losses: by task, what there is of its data set and what was missing at the start."""
        self.tasks, self.losses, self.mesh = list(losses), list(losses.values()), mesh
        self._bad_shards = {
            (fault.task, fault.shard) for loss in self.losses for fault in loss.faults if fault.shard != INFO_FILE
        }
        self._decisions, self._experts = model.num_decisions, model.experts.num_experts
        self._auxiliary_names = model.experts.auxiliary.names
        self._reset()

    def _reset(self) -> None:
        # Per task: micro-batches, loss, right read-outs, read-outs. Then samples, tokens, faults, seconds waited for data.
        self._tasks = torch.zeros(len(self.tasks), 4, dtype=torch.float64, device=self.mesh.device)
        self._counts = torch.zeros(5, dtype=torch.float64)
        self._by_task = torch.zeros(len(self.tasks), 2, dtype=torch.float64)  # faults, tokens
        kinds = len(Modality)
        shape = (self._decisions, kinds, self._experts + 1)
        # Pairs that each expert took from each modality, and in the last column all that were asked.
        self._routed_NMX = torch.zeros(*shape, dtype=torch.float64, device=self.mesh.device)
        self._auxiliary = torch.zeros(len(self._auxiliary_names), dtype=torch.float64, device=self.mesh.device)
        self._steps, self._skipped = 0, 0
        self._start = time.perf_counter()

    def add(self, micro: MicroBatch, losses: Losses, waited_s: float) -> None:
        row = self._tasks[micro.assignment.task]
        row += torch.stack(
            [
                losses.loss.new_ones(()),
                losses.loss,
                losses.correct,
                losses.loss.new_tensor(micro.batch.labels_Q.numel()),
            ]
        ).double()
        self._counts += torch.tensor([micro.num_samples, micro.num_tokens, len(micro.faults), waited_s, 1.0])
        self._by_task[micro.assignment.task] += torch.tensor([len(micro.faults), micro.num_tokens])
        self._bad_shards |= {(fault.task, fault.shard) for fault in micro.faults if fault.sample is None}
        routed_NMX = torch.cat([losses.accepted_NME, losses.asked_NM.unsqueeze(-1)], dim=-1)
        if routed_NMX.shape[0] == self._decisions:
            self._routed_NMX += routed_NMX.double()
        for index, name in enumerate(self._auxiliary_names):
            if name in losses.auxiliary:  # no sparse block, no such loss
                self._auxiliary[index] += losses.auxiliary[name].double()

    def end_step(self, info: StepInfo) -> None:
        self._steps += 1
        self._skipped += not info.applied
        self._last = info

    def record(self, step: int, total_steps: int, consumed: Sequence[int], paused_s: float = 0.0) -> Record:
        """Collective. Totals over data ranks since the last record; `step` counts finished steps.

        paused_s: of the time since the last record, what was no training.
        consumed: samples of each task since the run began; epoch/TASK is their number over the data set's size.
        faults: samples that had to be replaced; bad_shards: since the start, the most that one rank has met; lost_samples, lost_bytes:
        of all tasks' shards, missing since the start.
        """
        seconds = time.perf_counter() - self._start - paused_s
        parts = [
            self._tasks.cpu().flatten(),
            self._counts,
            self._by_task.flatten(),
            self._routed_NMX.cpu().flatten(),
            self._auxiliary.cpu(),
        ]
        of_all = total(torch.cat(parts).to(self.mesh.device), self.mesh.data).cpu()
        # Ranks meet the same shards, so their counts must not be added.
        bad_shards = maximum(torch.tensor(len(self._bad_shards), device=self.mesh.device), self.mesh.data)
        tasks, counts, by_task, routed, auxiliary = of_all.split([p.numel() for p in parts])
        samples, tokens, faults, waited, micro_batches = counts.tolist()
        record: Record = {
            "step": step,
            "lr": self._last.lr,
            "grad_norm": self._last.norms.total,
            **{f"grad_norm/{family}": getattr(self._last.norms, family) for family in FAMILIES},
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "step_s": seconds / self._steps,
            "data_wait": waited / self.mesh.data.size / seconds,
            "samples": int(samples),
            "faults": int(faults),
            "bad_shards": int(bad_shards),
            "lost_samples": sum(loss.samples for loss in self.losses),
            "lost_bytes": sum(loss.bytes for loss in self.losses),
            "skipped_steps": self._skipped,
            "eta_s": (total_steps - step) * seconds / self._steps,
        }
        for name, (count, loss_sum, correct, reads) in zip(self.tasks, tasks.view(-1, 4).tolist(), strict=True):
            if count:
                record[f"loss/{name}"] = loss_sum / count
                record[f"accuracy/{name}"] = correct / reads
        numbers = zip(self.tasks, self.losses, consumed, by_task.view(-1, 2).tolist(), strict=True)
        for name, loss, samples_of_task, (faults_of_task, tokens_of_task) in numbers:
            record[f"epoch/{name}"] = samples_of_task / loss.remaining
            record[f"tokens/{name}"] = int(tokens_of_task)
            if faults_of_task:
                record[f"faults/{name}"] = int(faults_of_task)
        for name, value in zip(self._auxiliary_names, auxiliary.tolist(), strict=True):
            record[f"auxiliary/{name}"] = value / micro_batches
        record |= _routing_record(routed.view(self._routed_NMX.shape))
        self._reset()
        return record


def has_diverged(record: Record, skipped_in_a_row: int, loss_scale: float) -> bool:
    """Is the last record's loss no finite number, or was the last update left out for a reason other than fp16's search for its scale?"""
    losses = [value for key, value in record.items() if key.startswith("loss/")]
    return not all(map(math.isfinite, losses)) or (skipped_in_a_row > 0 and loss_scale == 1.0)


def _routing_record(routed_NMX: Tensor) -> Record:
    """expert_load: share of all asked pairs that each expert took, by decision; success: share of a modality's asked pairs
    that were taken at all, over all decisions and by decision (LIMoE's success rate)."""
    if not routed_NMX.numel():
        return {}
    accepted_NME, asked_NM = routed_NMX[..., :-1], routed_NMX[..., -1]
    load_NE = accepted_NME.sum(dim=1) / asked_NM.sum(dim=1, keepdim=True).clamp(min=1)
    record: Record = {"expert_load": _rounded(load_NE), "expert_load_max": load_NE.max().item()}
    for modality in Modality:
        asked_N = asked_NM[:, modality]
        if asked_N.sum() > 0:
            taken_N = accepted_NME[:, modality].sum(dim=-1)
            record[f"success/{modality.name.lower()}"] = (taken_N.sum() / asked_N.sum()).item()
            record[f"success_by_decision/{modality.name.lower()}"] = _rounded(taken_N / asked_N.clamp(min=1))
    return record


def _rounded(values: Tensor) -> list:
    return (values * 1e4).round().div(1e4).tolist()
