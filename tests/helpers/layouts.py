"""Layouts of passes without the sequences."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from data.batch import Visibility
from data.token_layout import Part, token_layout
from model.layout import PassLayout, SequenceLayout
from model.noise import Key, derive


@dataclasses.dataclass(frozen=True)
class Span:
    """Places start ... end of every row belong to group `group`."""

    start: int
    end: int
    group: int


def plain_layout(
    valid_BL: Tensor,
    *spans: Span,
    vectors: list | None = None,
    modalities: list[int] | None = None,
    task: int = 0,
    by_group: bool = False,
    noise: Key = None,
) -> PassLayout:
    """Of one sequence in which everyone sees everyone; without spans there is one group. A group's attribute vector is its number in
    bits, and it is text, unless told otherwise."""
    spans = spans or (Span(0, valid_BL.shape[1], 0),)
    none = np.zeros(len(valid_BL), dtype=np.int64)
    parts = []
    for span in spans:
        vector = tuple(vectors[span.group]) if vectors else tuple(int(bit) for bit in f"{span.group:08b}")
        modality = int(modalities[span.group]) if modalities else 0
        parts.append(Part(valid_BL[:, span.start : span.end].numpy(), vector, modality, Visibility.PREFIX, none))
    tokens = token_layout(parts, with_spe=False)
    mask = None if tokens.is_full else valid_BL[:, None, None]
    return PassLayout((SequenceLayout(tokens, 0, mask, by_group, task=task, noise=noise),))


def joined(*layouts: PassLayout, noise: Key = None) -> PassLayout:
    """Of the sequences of several passes in one."""
    found: list[SequenceLayout] = []
    for index, layout in enumerate(layouts):
        start = found[-1].end if found else 0
        found.append(dataclasses.replace(layout.sequences[0], start=start, noise=derive(noise, index)))
    return PassLayout(tuple(found))


def tokens_of(x_BLD: Tensor, layout: PassLayout) -> Tensor:
    """The valid ones, in the order of the pass."""
    return x_BLD.flatten(0, 1)[layout.sequences[0].place_T]
