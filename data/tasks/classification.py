"""Image and video classification: the candidates are the class names (papers.md 1.5)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from data.attributes import NAME_TARGET, VISUAL_INPUT
from data.batch import Modality, Sequences, TaskBatch
from data.shards import DatasetError
from data.tasks.base import Answers, Sample, Task, TaskContext, Visual, label_of
from data.tasks.candidates import check_distinct, class_names
from data.tasks.segments import text_segment
from data.visual.mixing import mix


@dataclasses.dataclass(frozen=True)
class Labelled:
    """others: further views of it, in evaluation."""

    visual: Visual
    label: int
    others: tuple[Visual, ...] = ()


class Classification(Task):
    reads = ("image_class", "video_class")
    answers: ClassVar[Answers] = "classes"

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        if context.config.views[1] > 1 and self.modality != Modality.VIDEO:
            raise DatasetError(f"task {context.config.name}: views={context.config.views}: images have one clip: use 1")
        check_distinct(context.info.classes, context.vocabulary, context.config.max_text, context.config.name)
        self.candidates = class_names(context.info.classes, context.vocabulary, context.config.max_text)

    @property
    def kept_candidates(self) -> tuple[Sequences, ...]:
        return (self.candidates,)

    @property
    def draws_candidates(self) -> bool:
        return any(self.context.info.synonyms)

    def shared_candidates(self, generator: np.random.Generator) -> Sequences:
        return self._drawn_names(generator)

    @property
    def default_temperature(self) -> str:
        return "video" if self.modality == Modality.VIDEO else "image"

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Labelled:
        label = label_of(sample, self.context.info)
        if generator is not None or self.config.views == (1, 1):
            return Labelled(self.visual(sample, generator), label)
        first, *others = self.views(sample)
        return Labelled(first, label, tuple(others))

    @staticmethod
    def by_view(examples: list[Labelled]) -> Iterator[list[Labelled]]:
        """The examples as each view shows them."""
        yield examples
        for views in zip(*(example.others for example in examples), strict=True):
            yield [Labelled(view, example.label) for view, example in zip(views, examples, strict=True)]

    def batch(self, examples: list[Labelled], generator: np.random.Generator | None) -> TaskBatch:
        config, pixels = self.config, self.context.pixels
        rows = torch.arange(len(examples))
        segment = self.visual_segment([e.visual for e in examples], VISUAL_INPUT)
        labels = torch.tensor([e.label for e in examples])
        candidates, share = self.candidates, 0.0
        if generator is not None:
            segment, share = mix(segment, config.mix, generator, pixels.image_size, pixels.patch)
            if config.candidates == "local":
                candidates = self._drawn_names(generator)
        return TaskBatch(
            task=config.name,
            inputs=Sequences(segments=(segment,)),
            read_Q2=torch.stack([rows, torch.zeros_like(rows)], dim=1),
            candidates=candidates,
            labels_Q=labels,
            second_labels_Q=labels.flip(0) if share else None,
            second_share=share,
            temperature=self.temperature,
            scope=self.scope(generator),
            weight=config.loss_weight,
            label_smoothing=config.label_smoothing,
        )

    def _drawn_names(self, generator: np.random.Generator) -> Sequences:
        """One name of each class at random, where classes have several."""
        if not any(self.context.info.synonyms):
            return self.candidates
        rows = [names[generator.integers(len(names))] for names in self._all_names]
        return Sequences(segments=(text_segment(rows, NAME_TARGET),))

    @functools.cached_property
    def _all_names(self) -> list[list[list[int]]]:
        """Tokens of all names of each class."""
        info, longest = self.context.info, self.config.max_text
        both = zip(info.classes, info.synonyms, strict=True)
        return [[self.vocabulary.encode(name, longest) for name in (first, *more)] for first, more in both]
