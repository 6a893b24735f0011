"""Samples of a run's tasks with the experts of their patches and words.

Legend: N decisions, F frames, H rows of patches, W columns of patches, T words; y, x pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch

from analysis.opened import OpenRun
from analysis.routing_maps.choices import Choice, recorded
from data.batch import Modality, Scope, Segment, Sequences, TaskBatch, Visibility
from data.stream.evaluation import evaluation_pass
from data.stream.source import Source
from data.text.vocabulary import Vocabulary
from data.visual.normalise import pixels
from data.visual.transform import unpatchify


@dataclasses.dataclass(frozen=True)
class RoutedSample:
    """One input: pictures uint8 [F, y, x, 3], none of a text; words. Experts and gate weights of patches [N, F, H, W] and words [N, T];
    -1 is none."""

    task: str
    number: int
    frames: np.ndarray | None
    words: tuple[str, ...]
    patch_experts: np.ndarray
    patch_weights: np.ndarray
    word_experts: np.ndarray

    @property
    def title(self) -> str:
        return f"{self.task} {self.number}"

    @property
    def grid(self) -> str:
        """Frames, rows and columns of patches, as 1 x 2 x 2; empty of a text."""
        return " x ".join(map(str, self.patch_experts.shape[1:]))


@torch.no_grad()
def samples_of(run: OpenRun, source: Source, count: int) -> list[RoutedSample]:
    """Samples that are spread over the split, routed as one batch."""
    passed = next(evaluation_pass(source, count, count))
    examples = list(itertools.compress(passed.examples, passed.valid))
    if not examples:
        return []
    batch = dataclasses.replace(source.task.batch(examples, None), scope=Scope.LOCAL).to(run.mesh.device)
    with recorded(run.objective) as choices:
        run.objective(batch)
    context = source.task.context
    rows = (
        _sample(batch, choices, row, source.name, context.vocabulary, context.pixels.patch)
        for row in range(len(examples))
    )
    return list(rows)


def _sample(
    batch: TaskBatch, choices: list[Choice], row: int, task: str, vocabulary: Vocabulary, patch: int
) -> RoutedSample:
    frames, words = None, []
    patches_E, patches_W, words_E = np.zeros((0,)), np.zeros((0,)), []
    for sequence, segment, start in _shown(batch):
        end = start + segment.valid_BL.shape[1]
        experts_NL = np.stack([choice.experts[sequence][row, start:end].cpu().numpy() for choice in choices])
        if segment.modality == Modality.TEXT:
            valid_L = segment.valid_BL[row].cpu()
            words += [
                vocabulary.decode([token]).strip() or "·" for token in segment.values[row].cpu()[valid_L].tolist()
            ]
            words_E.append(experts_NL[:, valid_L.numpy()])
            continue
        weights_NL = np.stack([choice.weights[sequence][row, start:end].cpu().numpy() for choice in choices])
        positions_L3 = segment.positions[row].cpu().numpy()
        frames = unpatchify(pixels(segment.values[row].cpu(), segment.modality).numpy(), positions_L3, patch)
        grid = (len(choices), len(frames), frames.shape[1] // patch, frames.shape[2] // patch)
        patches_E, patches_W = np.full(grid, -1), np.zeros(grid)
        place = tuple(positions_L3.T)
        patches_E[:, *place], patches_W[:, *place] = experts_NL, weights_NL
    word_experts = np.concatenate(words_E, axis=1) if words_E else np.zeros((len(choices), 0), dtype=int)
    return RoutedSample(task, row, frames, tuple(words), patches_E, patches_W, word_experts)


def _shown(batch: TaskBatch) -> Iterator[tuple[int, Segment, int]]:
    """(number of the sequence, segment, its first position): what an input consists of, and the text that it is paired with. Words to be
    guessed are read out at copies that say nothing of their own."""
    parts: list[tuple[int, Sequences]] = [(0, batch.inputs)]
    if batch.symmetric:
        parts.append((1, batch.candidates))
    for number, sequences in parts:
        start = 1
        for segment in sequences.segments:
            if segment.visibility != Visibility.READOUT:
                yield number, segment, start
            start += segment.valid_BL.shape[1]
