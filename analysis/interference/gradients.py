"""Gradients of a run's tasks, example by example, of a few weights.

An example is a micro-batch of one sample with all its candidates, as training makes it; of a task whose candidates are its own batch it
is a small batch of pairs, as a single pair has no loss. Its gradient is one ordinary backward pass: shared candidates, merged weights,
tokens sent to other ranks and every layout are then right by construction; a vectorised pass would have to be taught each of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from analysis.interference.metric import Sums
from analysis.opened import OpenRun
from data.batch import Scope
from data.stream.faults import Fault
from data.stream.micro_batch import build_micro_batch
from data.stream.schedule import Assignment, Schedule
from data.stream.source import Source
from data.tasks import kind_of
from parallel.collectives import total
from parallel.placement import EXPERT_AXIS, TENSOR_AXIS, placement_of
from run.errors import ConfigError

LINEARS = ("ffn.down", "ffn.up", "attention.qkv", "attention.out")
PLACE = re.compile(
    r"^(text_)?tower\.encoder\.blocks\.(\d+)\.(attention|ffn)\.(?:experts\.)?(\w+)\.(?:linear\.|bank\.)?weight$"
)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A linear of a block, or the bank of its experts, which counts as one weight: what experts keep apart shows in it."""

    name: str
    parameter: nn.Parameter

    @property
    def size(self) -> int:
        """Numbers of the whole weight, over all ranks."""
        return torch.Size(placement_of(self.parameter).shape).numel()


def weights_of(run: OpenRun, layers: Sequence[int], linears: Sequence[str]) -> list[Weight]:
    """In the order of the layers; those of a text tower besides. Raises ConfigError where a layer or a linear is not there."""
    depth = run.config.model.depth
    for layer in layers:
        if layer >= depth:
            raise ConfigError(f"--layers {layer}: {run.folder} has the layers 0 to {depth - 1}")
    for linear in linears:
        if linear not in LINEARS:
            raise ConfigError(f"--linears {linear}: there are {', '.join(LINEARS)}")
    found = []
    for name, parameter in run.objective.named_parameters():
        place = PLACE.match(name)
        if place and int(place[2]) in layers and f"{place[3]}.{place[4]}" in linears:
            found.append(Weight(f"{'text ' if place[1] else ''}layer {place[2]}, {place[3]}.{place[4]}", parameter))
    return found


def spread_layers(depth: int) -> list[int]:
    """A third, two thirds and all of the way up: 3, 7 and 11 of twelve."""
    return sorted({max(0, round(depth * part / 3) - 1) for part in (1, 2, 3)})


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of all tasks. Numbers mean the same samples in every layout."""

    run: OpenRun
    schedule: Schedule

    @classmethod
    def of(cls, run: OpenRun, pairs: int, seed: int) -> Examples:
        """pairs: of an example of a contrastive task."""
        sizes = tuple(_rows(source, pairs) for source in run.sources)
        return cls(run, Schedule((1.0,) * len(sizes), sizes, 1, seed))

    def count(self, wanted: int) -> int:
        """As many as each task has without repeating a sample. Raises ConfigError where that is too few."""
        counts = {
            source.name: source.order.total // size
            for source, size in zip(self.run.sources, self.schedule.batch_sizes, strict=True)
        }
        fewest = min(counts, key=lambda name: counts[name])
        if counts[fewest] < 2:
            raise ConfigError(f"task {fewest} has too few samples for two examples: leave it out by --tasks")
        return min(wanted, counts[fewest])

    def gradient(self, weights: Sequence[Weight], task: int, number: int) -> tuple[list[Tensor], tuple[Fault, ...]]:
        """Collective over the ranks that hold parts of the network. -> (gradient of the task's loss, without auxiliary losses and noise;
        samples that could not be read, in whose places others came)."""
        start = number * self.schedule.batch_sizes[task]
        micro = build_micro_batch(self.run.sources[task], Assignment(0, 0, task, start), self.schedule)
        batch = dataclasses.replace(micro.batch, scope=Scope.LOCAL, weight=1.0).to(self.run.mesh.device)
        parameters = [weight.parameter for weight in weights]
        found = torch.autograd.grad(self.run.objective(batch).total, parameters, allow_unused=True)
        # Ranks that share experts out pass the same example, and a bank's gradient is the sum over them.
        ranks = self.run.mesh.expert.size
        gradients = [
            torch.zeros_like(p) if g is None else g / ranks if placement_of(p).is_cut_along(EXPERT_AXIS) else g
            for p, g in zip(parameters, found, strict=True)
        ]
        return gradients, micro.faults


def only_these_learn(run: OpenRun, weights: Sequence[Weight]) -> None:
    """So that a backward pass ends at the lowest of them, and one example is no batch to be cut into parts."""
    run.objective.config = dataclasses.replace(run.objective.config, chunks=1)
    chosen = {weight.parameter for weight in weights}
    for parameter in run.objective.parameters():
        parameter.requires_grad_(parameter in chosen)


def sums_of(run: OpenRun, weights: Sequence[Weight]) -> Sums:
    axes = {TENSOR_AXIS: run.mesh.tensor, EXPERT_AXIS: run.mesh.expert}

    def parts(numbers: Tensor, weight: int) -> Tensor:
        for name, axis in axes.items():
            if placement_of(weights[weight].parameter).is_cut_along(name):
                numbers = total(numbers, axis)
        return numbers

    return Sums(parts, lambda tensor: total(tensor, run.mesh.expert_data))


def _rows(source: Source, pairs: int) -> int:
    return pairs if kind_of(source.task.config).answers == "pairs" else 1
