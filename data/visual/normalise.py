"""Pixels to the numbers that the model sees. Patches travel as bytes, a quarter of what they become, and are normalised where
they are embedded.

Legend: B rows, L patches, P values of a patch (channel, y, x), C colour channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from data.batch import Modality

MEAN = {Modality.IMAGE: (0.485, 0.456, 0.406), Modality.VIDEO: (0.5, 0.5, 0.5)}
STD = {Modality.IMAGE: (0.229, 0.224, 0.225), Modality.VIDEO: (0.5, 0.5, 0.5)}
"""Of red, green and blue between 0 and 1: ImageNet's for images (papers.md 1.2)."""


def normalised(values_BLP: Tensor, modality: Modality) -> Tensor:
    """uint8 pixels to (pixel / 255 - mean) / std in float32, a channel at a time. Floating-point values are so already."""
    if values_BLP.is_floating_point():
        return values_BLP
    mean_C1, std_C1 = _mean_and_std(modality, values_BLP)
    return values_BLP.unflatten(-1, (3, -1)).float().sub_(mean_C1).div_(std_C1).flatten(-2)


def pixels(values_BLP: Tensor, modality: Modality) -> Tensor:
    """The nearest uint8 pixels; undoes `normalised`."""
    if not values_BLP.is_floating_point():
        return values_BLP
    mean_C1, std_C1 = _mean_and_std(modality, values_BLP)
    return (values_BLP.unflatten(-1, (3, -1)) * std_C1 + mean_C1).round_().clamp_(0, 255).flatten(-2).to(torch.uint8)


def _mean_and_std(modality: Modality, like: Tensor) -> tuple[Tensor, Tensor]:
    """[C, 1] each, for pixels between 0 and 255."""
    return _tables(modality, like.device)


@functools.cache
def _tables(modality: Modality, device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once: a device is waited for."""
    mean_C1, std_C1 = (torch.tensor(table[modality], device=device)[:, None] * 255 for table in (MEAN, STD))
    return mean_C1, std_C1
