"""Arrays to Segments: padding, positions, visibility. Legend: B rows, L positions, P values of a patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data.attributes import Attributes
from data.batch import Modality, Segment, Visibility


def text_segment(
    rows: Sequence[Sequence[int]], attributes: Attributes, visibility: Visibility = Visibility.PREFIX
) -> Segment:
    """Token ids of each row, padded on the right with 0; positions count from 0."""
    lengths = np.array([len(row) for row in rows])
    length = max(1, int(lengths.max()))
    valid_BL = np.arange(length) < lengths[:, None]
    values = np.zeros(valid_BL.shape, dtype=np.int64)
    values[valid_BL] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return Segment(
        modality=Modality.TEXT,
        values=torch.from_numpy(values),
        positions=torch.arange(length).expand(len(rows), length),
        valid_BL=torch.from_numpy(valid_BL),
        visibility=visibility,
        attributes=attributes,
    )


def equal_text_segment(tokens_BL: np.ndarray, attributes: Attributes) -> Segment:
    """Token ids of rows that are equally long."""
    rows, length = tokens_BL.shape
    return Segment(
        modality=Modality.TEXT,
        values=torch.from_numpy(tokens_BL),
        positions=torch.arange(length).expand(rows, length),
        valid_BL=torch.ones(rows, length, dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )


def readout_segment(lengths: Sequence[int], spe: int, attributes: Attributes) -> Segment:
    """<SPE> queries at positions 0 .. length-1 of each row (the second half of the double-token layout)."""
    return text_segment([[spe] * length for length in lengths], attributes, Visibility.READOUT)


def visual_segment(
    patches: Sequence[np.ndarray], positions: Sequence[np.ndarray], modality: Modality, attributes: Attributes
) -> Segment:
    """Patches [L, P] and positions [L, 3] of each row; all rows have the same grid."""
    values = torch.from_numpy(np.stack(patches))
    return Segment(
        modality=modality,
        values=values,
        positions=torch.from_numpy(np.stack(positions)),
        valid_BL=torch.ones(values.shape[:2], dtype=torch.bool),
        visibility=Visibility.PREFIX,
        attributes=attributes,
    )
