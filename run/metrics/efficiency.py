"""What a step costs: time by phase, tokens and FLOPs per second, bytes sent and held.

    Phases --listeners--> watchdog, profile, Memory, Efficiency: which collectives count
    micro-batches --add--> Work by tower, tokens, places --figures--> model FLOPs utilisation and the rest of a record

Counts are numbers of the host, made where the batch was made; nothing waits for the device before a record. Legend: M modalities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from data.batch import Modality
from data.stream.micro_batch import MicroBatch
from model.config import ModelConfig
from model.flops import Work, choice_flops, forward_flops, passes_of, towers_of, work_of
from model.objective import Objective
from parallel.collectives import maximum, total
from parallel.engine import Engine
from parallel.mesh import Mesh
from run.config import RunConfig
from run.metrics.memory import GIB, Expected, Memory, peak_bytes
from run.metrics.peaks import TERA, note_of, peak_of
from run.metrics.phases import PASSES, PHASES, SENDING, Listener, Phases
from run.metrics.profile import Profile


@dataclasses.dataclass(frozen=True)
class Machine:
    """peak: FLOP/s of all ranks together, 0 where it is not known. reduction: bytes that a rank sends in a step's reduction of gradients,
    which DeepSpeed does and parallel/traffic.py does not see."""

    peak: float = 0.0
    reduction: int = 0


class Efficiency:
    """phase: what the loop calls; see `Phases`."""

    def __init__(
        self,
        model: ModelConfig,
        passes: Mapping[str, float],
        mesh: Mesh,
        machine: Machine = Machine(),
        listeners: Sequence[Listener] = (),
        memory: Memory | None = None,
    ) -> None:
        """passes: of each part of the network (model/flops.py). memory: of the rank that writes it."""
        self.model, self.passes, self.mesh, self.machine, self._memory = model, passes, mesh, machine, memory
        axes = {"tensor": mesh.tensor, "expert": mesh.expert, "data": mesh.data}
        self._traffic = {
            name: axis.traffic for name, axis in axes.items() if axis.size > 1 and axis.traffic is not None
        }
        watching: list[Listener] = [*listeners]
        if memory:
            watching.append(memory)
        if self._traffic:
            watching.append(self._choose_counted)
        self.phase = Phases(mesh.device, watching)
        self._reset()

    @classmethod
    def open(
        cls,
        run: RunConfig,
        objective: Objective,
        engine: Engine,
        expected: Expected,
        listener: Listener,
        tell: Callable[[str], object],
    ) -> Self:
        """Collective. Of a run, with all that its options ask for. tell: gets lines for the console."""
        mesh = engine.mesh
        own = peak_of(run.tracking.peak, mesh.device, engine.dtype)
        listeners = [listener]
        if run.profile:
            rank = mesh.data.rank * mesh.tensor.size + mesh.tensor.rank
            listeners.append(Profile(run.folder / "profile", rank, mesh.device, run.profile.steps, tell))
        memory = Memory(objective, engine.fragments, mesh.device, run.folder, expected) if mesh.is_first else None
        for note in note_of(run.tracking.peak, mesh.device, engine.dtype, own):
            tell(note)
        machine = Machine(_of_all_ranks(own, mesh), expected.reduction)
        return cls(run.model, passes_of(objective), mesh, machine, listeners, memory)

    def _reset(self) -> None:
        self._tokens_M, self._places = [0.0] * len(Modality), 0.0
        self._works = torch.zeros(len(towers_of(self.model)), len(Work._fields), dtype=torch.float64)
        self._steps = 0

    def add(self, micro: MicroBatch) -> None:
        ranks = self.mesh.data.size
        for counts, part in micro.encoded(ranks):
            for modality in Modality:
                # <SPE> joins the modality that its sequence begins with, as it does where tokens are routed.
                tokens = counts.tokens_M[modality] + counts.rows * (modality == counts.first)
                self._tokens_M[modality] += part * tokens
            self._places += part * counts.places
        works = work_of(self.model, micro.batch, micro.inputs, micro.candidates, ranks, micro.shared)
        self._works += torch.tensor(works, dtype=torch.float64)

    def end_step(self) -> None:
        self._steps += 1

    def sums(self) -> Tensor:
        """What there was since the last `figures`, to be added up over data ranks."""
        seconds = self.phase.taken()
        sent = {name: traffic.taken() for name, traffic in self._traffic.items()}
        self._sent = {name: num_bytes for name, (num_bytes, _) in sent.items()}
        waited = sum(seconds for _, seconds in sent.values())
        times = [*(seconds[phase] for phase in PHASES), waited]
        return torch.cat([torch.tensor([*self._tokens_M, self._places, *times]).double(), self._works.flatten()])

    def figures(self, sums: Tensor, dropped_N: Tensor, seconds: float) -> dict[str, Any]:
        """Collective. sums: of all data ranks; dropped_N: choices that found no slot, by decision; seconds: that training took."""
        kinds, numbers = len(Modality), sums.tolist()
        places, times, works = numbers[kinds], numbers[kinds + 1 :][: len(PHASES) + 1], sums[kinds + len(PHASES) + 2 :]
        ranks, valid = self.mesh.data.size, sum(numbers[:kinds])
        record: dict[str, Any] = {
            f"tokens_per_s/{modality.name.lower()}": numbers[modality] / seconds
            for modality in Modality
            if numbers[modality]
        }
        record["padding"] = 1 - valid / places
        record |= {f"time/{phase}": times[index] / ranks / self._steps for index, phase in enumerate(PHASES)}
        # megatron-core's linears wait for each other by themselves.
        if self._traffic and (self.mesh.tensor.size == 1 or self.mesh.sequence.size > 1):
            record["time/exchange"] = times[-1] / ranks / self._timed_steps
        flops = self._flops(works.view(self._works.shape).tolist(), dropped_N.tolist())
        record["model_tflops_per_s"] = flops / seconds / TERA
        if self.machine.peak:
            record["mfu"] = flops / seconds / self.machine.peak
        record |= self._of_ranks()
        self._reset()
        if self._memory:
            self._memory.write()
        return record

    def _flops(self, works: list[list[float]], dropped: list[float]) -> float:
        """Of training steps."""
        parts = forward_flops(self.model, [Work(*work) for work in works])
        done = sum(self.passes[part] * flops for part, flops in parts.items())
        choices = zip(choice_flops(self.model), dropped, strict=True)
        return done - sum(self.passes[part] * flops * number for (part, flops), number in choices)

    def _of_ranks(self) -> dict[str, float]:
        """Collective. The largest of all ranks."""
        per_step = {name: num_bytes / self._steps for name, num_bytes in self._sent.items()}
        if "data" in per_step:
            per_step["data"] += self.machine.reduction
        held = [peak_bytes(self.mesh.device), *per_step.values()]
        of_rank = torch.tensor(held, dtype=torch.float64, device=self.mesh.device)
        largest = maximum(maximum(of_rank, self.mesh.data), self.mesh.tensor).tolist()
        names = ["memory/peak_gib", *(f"sent_gib/{name}" for name in per_step)]
        return {name: value / GIB for name, value in zip(names, largest, strict=True)}

    @property
    def _timed_steps(self) -> int:
        """Events in a device's stream are made for one step of an interval alone."""
        return self._steps if self.mesh.device == "cpu" else 1

    def _choose_counted(self, phase: str, step: int | None) -> None:
        timed = phase in PASSES and (self.mesh.device == "cpu" or not self._steps)
        for traffic in self._traffic.values():
            traffic.counts, traffic.times = phase in SENDING, timed


def _of_all_ranks(peak: float, mesh: Mesh) -> float:
    """Collective. 0 if one of them is not known."""
    own = torch.tensor([peak], dtype=torch.float64, device=mesh.device)
    lowest = -maximum(maximum(-own, mesh.data), mesh.tensor)
    return total(total(own, mesh.data), mesh.tensor).item() if lowest.item() else 0.0
