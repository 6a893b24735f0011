"""Image and video classification: the candidates are the class names (papers.md 1.5)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from data.attributes import VISUAL_INPUT
from data.batch import Modality, Sequences, TaskBatch
from data.decode import BadSample
from data.targets import class_names
from data.tasks.base import Sample, Task, TaskContext, Visual


@dataclasses.dataclass(frozen=True)
class Labelled:
    visual: Visual
    label: int


class Classification(Task):
    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.candidates = class_names(context.info.classes, context.vocabulary, context.config.max_text)

    @property
    def default_temperature(self) -> str:
        return "video" if self.modality == Modality.VIDEO else "image"

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Labelled:
        try:
            label = int(sample["cls"])
        except (KeyError, ValueError) as error:
            raise BadSample(f"no class index in member cls: {error}") from error
        if not 0 <= label < len(self.context.info.classes):
            raise BadSample(f"class {label} of {len(self.context.info.classes)}")
        return Labelled(self.visual(sample, generator), label)

    def batch(self, examples: list[Labelled], generator: np.random.Generator | None) -> TaskBatch:
        rows = torch.arange(len(examples))
        return TaskBatch(
            task=self.config.name,
            inputs=Sequences(segments=(self.visual_segment([e.visual for e in examples], VISUAL_INPUT),)),
            read_Q2=torch.stack([rows, torch.zeros_like(rows)], dim=1),
            candidates=self.candidates,
            labels_Q=torch.tensor([e.label for e in examples]),
            temperature=self.temperature,
            weight=self.config.loss_weight,
            label_smoothing=self.config.label_smoothing,
        )
