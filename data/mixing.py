"""Mixup and cutmix of a batch of patches, in the convention of DeiT and timm: one draw a batch, each row with the row that
mirrors it (the first with the last).

Mixing patches equals mixing normalised pixels before they are cut: cutting moves values, and a weighted mean whose weights
sum to one commutes with normalisation. Legend: B rows, L patches, P values of a patch, Q read-outs (one a row).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from data.config import MixConfig
from data.transform import PixelBox, box_mask


@dataclasses.dataclass(frozen=True)
class Mix:
    """share: weight of the mirrored row, in inputs and labels alike; box: where it replaces the row, None = everywhere."""

    share: float
    box: PixelBox | None = None


def draw_mix(config: MixConfig, size: int, generator: np.random.Generator) -> Mix | None:
    """What happens to a batch of square images of `size` pixels; None = nothing. Draws nothing when mixing is off."""
    if not config.enabled or generator.random() >= config.probability:
        return None
    if config.mixup_alpha and config.cutmix_alpha:
        cut = bool(generator.random() < config.switch_probability)
    else:
        cut = config.cutmix_alpha > 0
    if not cut:
        return Mix(share=float(generator.beta(config.mixup_alpha, config.mixup_alpha)))
    box = _random_box(float(generator.beta(config.cutmix_alpha, config.cutmix_alpha)), size, generator)
    # The border cuts boxes, so the share is the area that is left of it, not the one that was drawn.
    return Mix(share=(box.bottom - box.top) * (box.right - box.left) / size**2, box=box)


def _random_box(area: float, size: int, generator: np.random.Generator) -> PixelBox:
    """A square of this share of the area around a random pixel, cut down to the image."""
    half = int(size * math.sqrt(area)) // 2
    y, x = (int(v) for v in generator.integers(size, size=2))
    side = int(size * math.sqrt(area)) - half
    return PixelBox(max(0, y - half), max(0, x - half), min(size, y + side), min(size, x + side))


def mix_patches(patches_BLP: Tensor, mix: Mix, size: int, patch: int) -> Tensor:
    """Rows mixed with their mirrored rows; clips are mixed alike in all frames."""
    mirrored_BLP = patches_BLP.flip(0)
    if mix.box is None:
        return torch.lerp(patches_BLP, mirrored_BLP, mix.share)
    frame_LP = box_mask(mix.box, size, patch)
    mask_LP = torch.from_numpy(frame_LP).repeat(patches_BLP.shape[1] // frame_LP.shape[0], 1)
    return torch.where(mask_LP, mirrored_BLP, patches_BLP)


def mix_labels(labels_Q: Tensor, mix: Mix) -> tuple[Tensor, Tensor, float]:
    """(labels, second labels, share of the second). The first is the one with more weight, so that a reported accuracy
    counts the answer that is most nearly right."""
    mirrored_Q = labels_Q.flip(0)
    if mix.share > 0.5:
        return mirrored_Q, labels_Q, 1 - mix.share
    return labels_Q, mirrored_Q, mix.share
