"""What a run tells about itself: sums on the device between two log points.

A log record is a flat dict; run/sinks/sinks.py takes it further.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from data.shards.files import INFO_FILE
from data.stream.faults import Loss
from data.stream.micro_batch import MicroBatch
from model.config import ModelConfig
from model.moe.use import unpacked
from model.objective import Losses
from parallel.collectives import maximum, total
from parallel.engine import StepInfo
from parallel.mesh import Mesh
from parallel.norms import FAMILIES
from run.metrics.alarms import Alarms
from run.metrics.efficiency import Efficiency
from run.metrics.expert_use import Record, UseByTask


class Meter:
    """Sums between two log points. Nothing waits for the device until `record`, which all ranks call together."""

    def __init__(
        self, losses: dict[str, Loss], model: ModelConfig, mesh: Mesh, efficiency: Efficiency, alarm_steps: int = 0
    ) -> None:
        """losses: by task, what there is of its data set and what was missing at the start; alarm_steps: tracking.alarm_steps."""
        self.tasks, self.losses, self.mesh, self._efficiency = list(losses), list(losses.values()), mesh, efficiency
        self._bad_shards = {
            (fault.task, fault.shard) for loss in self.losses for fault in loss.faults if fault.shard != INFO_FILE
        }
        self._use, self._alarms = UseByTask(model, self.tasks, mesh.device), Alarms.of(model, alarm_steps)
        self._auxiliary_names = model.experts.auxiliary.names if model.num_decisions else ()
        self._families = FAMILIES if model.num_decisions else ("dense",)
        self.skipped_in_a_row = 0
        self._reset(time.perf_counter())

    def _reset(self, start: float) -> None:
        # Per task: micro-batches, loss, right read-outs, read-outs. Then samples, tokens, faults, micro-batches.
        self._tasks = torch.zeros(len(self.tasks), 4, dtype=torch.float64, device=self.mesh.device)
        self._counts = torch.zeros(4, dtype=torch.float64)
        self._by_task = torch.zeros(len(self.tasks), 2, dtype=torch.float64)  # faults, tokens
        self._auxiliary = torch.zeros(len(self._auxiliary_names), dtype=torch.float64, device=self.mesh.device)
        self._steps, self._skipped = 0, 0
        self._start = start

    def add(self, micro: MicroBatch, losses: Losses) -> None:
        row = self._tasks[micro.assignment.task]
        row += torch.stack(
            [
                losses.loss.new_ones(()),
                losses.loss,
                losses.correct,
                losses.loss.new_full((), micro.batch.labels_Q.numel()),
            ]
        ).double()
        tokens = sum(part * counts.tokens for counts, part in micro.encoded(self.mesh.data.size))
        self._counts += torch.tensor([micro.num_samples, tokens, len(micro.faults), 1.0])
        self._by_task[micro.assignment.task] += torch.tensor([len(micro.faults), tokens])
        self._bad_shards |= {(fault.task, fault.shard) for fault in micro.faults if fault.sample is None}
        self._use.add(micro.assignment.task, losses.use)
        self._efficiency.add(micro)
        for index, name in enumerate(self._auxiliary_names):
            if name in losses.auxiliary:  # no sparse block, no such loss
                self._auxiliary[index] += losses.auxiliary[name].double()

    def end_step(self, info: StepInfo) -> None:
        self._steps += 1
        self._skipped += not info.applied
        self.skipped_in_a_row = 0 if info.applied else self.skipped_in_a_row + 1
        self._efficiency.end_step()
        self._last = info

    def record(self, step: int, total_steps: int, consumed: Sequence[int], paused_s: float = 0.0) -> Record:
        """Collective. Totals over data ranks since the last record; `step` counts finished steps.

        paused_s: of the time since the last record, what was no training.
        consumed: samples of each task since the run began; epoch/TASK is their number over the data set's size, or its part's.
        faults: samples that had to be replaced; bad_shards: since the start, the most that one rank has met; lost_samples, lost_bytes:
        of all tasks' shards, missing since the start.
        """
        now = time.perf_counter()
        own_s = torch.tensor([now - self._start - paused_s], dtype=torch.float64)
        efficiency = self._efficiency.sums()
        use_TNMX = self._use.taken()
        parts = [
            self._tasks.cpu().flatten(),
            self._counts,
            self._by_task.flatten(),
            use_TNMX.flatten(),
            self._auxiliary.cpu(),
            efficiency,
            own_s,
        ]
        of_all = total(torch.cat(parts).to(self.mesh.device), self.mesh.data).cpu()
        # Ranks meet the same shards, so their counts must not be added.
        bad_shards = maximum(torch.tensor(len(self._bad_shards), device=self.mesh.device), self.mesh.data)
        tasks, counts, by_task, use, auxiliary, efficiency, all_s = of_all.split([p.numel() for p in parts])
        # The mean, as phases are: ranks look at their clocks at different times.
        seconds = all_s.item() / self.mesh.data.size
        samples, tokens, faults, micro_batches = counts.tolist()
        use_TNMX = use.view(use_TNMX.shape)
        record: Record = {
            "step": step,
            "lr": self._last.lr,
            "grad_norm": self._last.norms.total,
            **{f"grad_norm/{family}": getattr(self._last.norms, family) for family in self._families},
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "step_s": seconds / self._steps,
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
            record[f"epoch/{name}"] = samples_of_task / loss.epoch
            record[f"tokens/{name}"] = int(tokens_of_task)
            if faults_of_task:
                record[f"faults/{name}"] = int(faults_of_task)
        for name, value in zip(self._auxiliary_names, auxiliary.tolist(), strict=True):
            record[f"auxiliary/{name}"] = value / micro_batches
        record |= self._use.record(use_TNMX, step, total_steps)
        record |= self._efficiency.figures(efficiency, unpacked(use_TNMX.sum(dim=0)).dropped, seconds)
        record["data_wait"] = record["time/data"] / record["step_s"]
        self._alarms, alarms = self._alarms.after(record, self._steps)
        record |= self._alarms.figures | ({"alarms": list(alarms)} if alarms else {})
        self._reset(now)
        return record


def has_diverged(record: Record, skipped_in_a_row: int, loss_scale: float) -> bool:
    """Is the last record's loss no finite number, or was the last update left out for a reason other than fp16's search for its scale?"""
    losses = [value for key, value in record.items() if key.startswith("loss/")]
    return not all(map(math.isfinite, losses)) or (skipped_in_a_row > 0 and loss_scale == 1.0)
