"""Sequence layouts without the sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from model.layout import SequenceLayout, Span


def plain_layout(
    valid_BL: Tensor, *spans: Span, vectors: list | None = None, modalities: list[int] | None = None, task: int = 0
) -> SequenceLayout:
    """Everyone sees everyone; groups have attribute vector zero and are text unless told otherwise."""
    groups = 1 + max(span.group for span in spans)
    return SequenceLayout(
        valid_BL=valid_BL,
        mask_BLL=None,
        spans=spans,
        attributes_GA=torch.tensor(vectors or [[0] * 8] * groups, dtype=torch.float32),
        modality_G=torch.tensor(modalities or [0] * groups),
        prefix_L=torch.ones(valid_BL.shape[1], dtype=torch.bool),
        task=task,
    )
