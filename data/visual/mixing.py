"""Mixup and cutmix of a batch of patches, in timm's batch mode: one share for all, the partner is the row from the other end.

Both are exact on patches: normalisation and cutting are the same for every image. Cutmix leaves bytes; mixup, whose values lie
between them, returns normalised numbers. Legend: B rows, L patches, P values of one.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from data.batch import Segment
from data.config import MixConfig
from data.visual.normalise import normalised


def mix(segment: Segment, config: MixConfig, rng: np.random.Generator, size: int, patch: int) -> tuple[Segment, float]:
    """-> (mixed images, share of the partner). The partner of row b is row B - 1 - b."""
    if not config.is_on or rng.random() >= config.probability:
        return segment, 0.0
    use_cutmix = bool(config.cutmix) and (not config.mixup or rng.random() < config.cutmix_share)
    alpha = config.cutmix if use_cutmix else config.mixup
    own = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        values_BLP = normalised(segment.values, segment.modality)
        return dataclasses.replace(segment, values=own * values_BLP + (1 - own) * values_BLP.flip(0)), 1 - own
    top, bottom, left, right = _box(size, 1 - own, rng)
    inside_BLP = _pixels_inside(segment.positions, patch, top, bottom, left, right)
    share = (bottom - top) * (right - left) / size**2  # of the box as it was cut off at the border
    values_BLP = torch.where(inside_BLP, segment.values.flip(0), segment.values)
    return dataclasses.replace(segment, values=values_BLP), share


def _box(size: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Rows top..bottom and columns left..right of a square box of a share of the area around a random centre."""
    half = int(size * math.sqrt(share)) // 2
    row, column = int(rng.integers(size)), int(rng.integers(size))
    return max(0, row - half), min(size, row + half), max(0, column - half), min(size, column + half)


def _pixels_inside(positions_BL3: Tensor, patch: int, top: int, bottom: int, left: int, right: int) -> Tensor:
    """bool [B, L, P]: which values of each patch (channel, y, x) lie in the box."""
    offset = torch.arange(patch)
    rows_BLy = positions_BL3[..., 1:2] * patch + offset
    columns_BLx = positions_BL3[..., 2:3] * patch + offset
    in_rows = (rows_BLy >= top) & (rows_BLy < bottom)
    in_columns = (columns_BLx >= left) & (columns_BLx < right)
    square = in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)
    return square.flatten(-2).repeat(1, 1, 3)
