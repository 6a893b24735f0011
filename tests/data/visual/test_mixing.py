"""Mixup and cutmix on patches equal the same on pixels; the loss is soft-target cross-entropy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.attributes import VISUAL_INPUT
from data.batch import Modality, Segment
from data.config import MixConfig
from data.tasks.segments import visual_segment
from data.visual.mixing import _box, mix
from data.visual.normalise import normalised
from data.visual.transform import patchify
from tests.helpers.batches import classification
from tests.helpers.models import make

SIZE, PATCH = 16, 4


def batch(rows: int = 4) -> tuple[np.ndarray, Segment]:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    patches, positions = zip(*(patchify(image[None], PATCH) for image in pixels), strict=True)
    return pixels, visual_segment(patches, positions, Modality.IMAGE, VISUAL_INPUT)


def as_patches(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([patchify(image[None], PATCH)[0] for image in pixels]))


def blend(segment: Segment, share: float) -> torch.Tensor:
    """The first row, a share of it the last one."""
    values = normalised(segment.values, segment.modality)
    return (1 - share) * values[0] + share * values[-1]


def test_off_by_default_and_draws_nothing():
    _, segment = batch()
    rng = np.random.default_rng(0)
    mixed, share = mix(segment, MixConfig(), rng, SIZE, PATCH)
    assert mixed is segment and share == 0.0
    assert rng.random() == np.random.default_rng(0).random()


def test_mixup_blends_with_the_row_from_the_other_end():
    _, segment = batch()
    mixed, share = mix(segment, MixConfig(mixup=0.8), np.random.default_rng(3), SIZE, PATCH)
    assert 0 < share < 1
    torch.testing.assert_close(mixed.values[0], blend(segment, share))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_is_a_box_of_pixels_and_its_share_the_area(seed):
    pixels, segment = batch()
    cut, share = mix(segment, MixConfig(cutmix=1.0), np.random.default_rng(seed), SIZE, PATCH)
    values, mixed = segment.values, cut.values
    from_partner = (mixed == values.flip(0)) & (mixed != values)
    grid = from_partner[0].view(4, 4, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2).reshape(SIZE, SIZE, 3).any(dim=2).numpy()
    rows, columns = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
    if not len(rows):
        assert share * SIZE**2 < 2
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert share == pytest.approx(grid[box].size / SIZE**2)
    expected = pixels.copy()
    for row in range(4):
        expected[row][box] = pixels[3 - row][box]
    torch.testing.assert_close(mixed, as_patches(expected))


def test_switching_between_the_two():
    _, segment = batch()
    config = MixConfig(mixup=0.8, cutmix=1.0, probability=0.5, cutmix_share=0.25)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        mixed, share = mix(segment, config, np.random.default_rng(seed), SIZE, PATCH)
        blended = share and torch.allclose(mixed.values[0].float(), blend(segment, share))
        kinds["mixup" if blended else "none" if share == 0 else "cutmix"] += 1
    assert kinds["none"] == pytest.approx(200, abs=40) and kinds["mixup"] == pytest.approx(150, abs=40)


def test_two_labels_are_soft_targets():
    objective = make()
    plain = dataclasses.replace(classification(), labels_Q=torch.tensor([0, 1, 2, 1]))
    share, smoothing = 0.3, plain.label_smoothing
    mixed = dataclasses.replace(plain, second_labels_Q=plain.labels_Q.flip(0), second_share=share)
    features, _ = objective.encode(plain.inputs, plain.read_Q2)
    names, _ = objective.encode_candidates(plain.candidates)
    log_probs = objective.logits(features, names, plain.temperature).log_softmax(1)
    one_hot = torch.nn.functional.one_hot(plain.labels_Q, 3).float()
    soft = (1 - share) * one_hot + share * one_hot.flip(0)
    soft = (1 - smoothing) * soft + smoothing / 3
    assert objective(mixed).loss.item() == pytest.approx(-(soft * log_probs).sum(1).mean().item(), rel=1e-5)
    assert objective(mixed).loss.item() != pytest.approx(objective(plain).loss.item(), rel=1e-3)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="second_share"):
        dataclasses.replace(classification(), second_share=0.5)
    with pytest.raises(ValueError, match="must not be negative"):
        MixConfig(mixup=-1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        MixConfig(probability=2)


def test_shares_follow_their_beta_distribution():
    _, segment = batch()
    draw = lambda config: [mix(segment, config, np.random.default_rng(seed), SIZE, PATCH)[1] for seed in range(400)]  # noqa: E731
    shares = np.array(draw(MixConfig(mixup=2.0)))
    # Beta(2, 2): mean 1/2, variance 1/20. Beta(0.5, 0.5) has variance 1/8.
    assert shares.mean() == pytest.approx(0.5, abs=0.05) and shares.var() == pytest.approx(0.05, abs=0.01)
    assert np.var(draw(MixConfig(mixup=0.5))) == pytest.approx(0.125, abs=0.02)


def test_the_box_has_the_share_of_the_area_and_is_cut_off_at_the_border():
    class Draws:
        def __init__(self, *values):
            self.values = list(values)

        def integers(self, _):
            return self.values.pop(0)

    assert _box(16, 0.25, Draws(8, 6)) == (4, 12, 2, 10)  # half the side: 8 x 8 around row 8, column 6
    assert _box(16, 0.25, Draws(1, 15)) == (0, 5, 11, 16)
    assert _box(16, 1.0, Draws(8, 8)) == (0, 16, 0, 16)


def test_the_box_of_cutmix_is_the_partner_s_share():
    class Draws:
        def random(self):
            return 0.0

        def beta(self, a, b):
            return 0.75

        def integers(self, size):
            return size // 2

    _, segment = batch()
    cut, share = mix(segment, MixConfig(cutmix=1.0), Draws(), SIZE, PATCH)
    assert share == 0.25  # 8 x 8 of 16 x 16
    assert ((cut.values == segment.values.flip(0)) & (cut.values != segment.values)).float().mean() < 0.26
