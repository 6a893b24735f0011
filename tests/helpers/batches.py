"""Small task batches of every kind, made without the data package's files."""

from __future__ import annotations

import dataclasses

import torch

from data.attributes import CAPTION_TEXT, CAPTION_VISUAL, NAME_TARGET, TEXT_INPUT, VISUAL_INPUT, WORD_TARGET, Attributes
from data.batch import CandidateSet, Modality, Scope, Segment, Sequences, TaskBatch, Visibility

VOCABULARY_SIZE = 40
PATCH_VALUES = 3 * 8 * 8


def text(
    generator: torch.Generator, lengths: list[int], attributes: Attributes, visibility=Visibility.PREFIX
) -> Segment:
    longest = max(lengths)
    values = torch.randint(0, VOCABULARY_SIZE - 5, (len(lengths), longest), generator=generator)
    valid_BL = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    return Segment(
        modality=Modality.TEXT,
        values=values * valid_BL,
        positions=torch.arange(longest).expand(len(lengths), longest),
        valid_BL=valid_BL,
        visibility=visibility,
        attributes=attributes,
    )


def visual(generator: torch.Generator, rows: int, frames: int, attributes: Attributes) -> Segment:
    grid = torch.cartesian_prod(torch.arange(frames), torch.arange(2), torch.arange(2))
    return Segment(
        modality=Modality.IMAGE if frames == 1 else Modality.VIDEO,
        values=torch.randn(rows, len(grid), PATCH_VALUES, generator=generator),
        positions=grid.expand(rows, *grid.shape),
        valid_BL=torch.ones(rows, len(grid), dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )


def _rows(count: int) -> torch.Tensor:
    return torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1)


def classification(seed: int = 0, frames: int = 1) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    return TaskBatch(
        task="video" if frames > 1 else "image",
        inputs=Sequences(segments=(visual(g, 4, frames, VISUAL_INPUT),)),
        read_Q2=_rows(4),
        candidates=Sequences(segments=(text(g, [2, 3, 1], NAME_TARGET),)),
        labels_Q=torch.randint(0, 3, (4,), generator=g),
        temperature="video" if frames > 1 else "image",
        label_smoothing=0.1,
    )


def masked_text(seed: int = 0) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    return TaskBatch(
        task="text",
        inputs=Sequences(segments=(text(g, [5, 3, 6], TEXT_INPUT),)),
        read_Q2=torch.tensor([[0, 2], [1, 1], [2, 6]]),
        candidates=Sequences(segments=(text(g, [1] * 7, WORD_TARGET),)),
        labels_Q=torch.tensor([3, 0, 6]),
        temperature="text",
        candidate_log_weights_C=torch.tensor([0, 0, 0, 0, 1.0, 1.0, 0]),
    )


def captioning(seed: int = 0, frames: int = 1) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    lengths = [3, 4]
    image = visual(g, 2, frames, CAPTION_VISUAL)
    words = text(g, lengths, CAPTION_TEXT, Visibility.CAUSAL)
    queries = text(g, lengths, CAPTION_TEXT, Visibility.READOUT)
    first = 1 + image.valid_BL.shape[1] + 4
    read_Q2 = queries.valid_BL.nonzero() + torch.tensor([0, first])
    return TaskBatch(
        task="caption",
        inputs=Sequences(segments=(image, words, queries)),
        read_Q2=read_Q2,
        candidates=Sequences(segments=(text(g, [1] * 9, WORD_TARGET),)),
        labels_Q=torch.randint(0, 9, (7,), generator=g),
        temperature="caption",
        weight=0.5,
    )


def retrieval(seed: int = 0) -> TaskBatch:
    g = torch.Generator().manual_seed(seed)
    return TaskBatch(
        task="retrieval",
        inputs=Sequences(segments=(visual(g, 4, 1, VISUAL_INPUT),)),
        read_Q2=_rows(4),
        candidates=Sequences(segments=(text(g, [2, 5, 3, 4], NAME_TARGET),)),
        labels_Q=torch.arange(4),
        temperature="retrieval",
        symmetric=True,
    )


def pairs(seed: int, place: int) -> TaskBatch:
    """Pairs of which some are like those of the batch beside them: image 0 of both, and text 1."""
    alike_Q2 = [[[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 8], [9, 5], [10, 11], [12, 13]]][place]
    return dataclasses.replace(retrieval(seed), alike_Q2=torch.tensor(alike_Q2))


def sharing(task: str, seed: int, beside: tuple[str, ...] = ()) -> TaskBatch:
    """A batch whose candidates data ranks encode together with those of the tasks `beside` it; pairs have their own."""
    tasks = [name for name in BATCHES if name in (task, *beside) and name != "retrieval"]
    shared = tuple(
        CandidateSet(number=list(BATCHES).index(name), task=name, candidates=BATCHES[name](7).candidates)
        for name in tasks
    )
    batch = BATCHES[task](seed)
    if task == "retrieval":
        return dataclasses.replace(batch, shared=shared)
    own = tasks.index(task)
    return dataclasses.replace(
        batch,
        candidates=shared[own].candidates,
        candidate_log_weights_C=None,
        scope=Scope.SHARDED,
        shared=shared,
        own=own,
    )


def joined(first: TaskBatch, second: TaskBatch) -> TaskBatch:
    """Pairs of two retrieval batches as one; both have the same lengths."""

    def both(a: Sequences, b: Sequences) -> Sequences:
        pairs = zip(a.segments, b.segments, strict=True)
        fields = ("values", "positions", "valid_BL")
        return Sequences(
            segments=tuple(
                dataclasses.replace(x, **{f: torch.cat([getattr(x, f), getattr(y, f)]) for f in fields})
                for x, y in pairs
            )
        )

    rows = len(first.read_Q2)
    return dataclasses.replace(
        first,
        inputs=both(first.inputs, second.inputs),
        candidates=both(first.candidates, second.candidates),
        read_Q2=_rows(2 * rows),
        labels_Q=torch.cat([first.labels_Q, second.labels_Q + rows]),
        alike_Q2=None if first.alike_Q2 is None else torch.cat([first.alike_Q2, second.alike_Q2]),
    )


BATCHES = {
    "image": classification,
    "video": lambda seed=0: classification(seed, frames=2),
    "text": masked_text,
    "caption": captioning,
    "retrieval": retrieval,
}
