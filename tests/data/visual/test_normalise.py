"""Bytes of patches to what the model sees, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.batch import Modality
from data.visual.normalise import normalised, pixels
from data.visual.transform import patchify


def test_images_have_imagenets_mean_and_deviation():
    frame = np.random.default_rng(0).integers(0, 256, (1, 4, 8, 3), dtype=np.uint8)
    expected = (frame[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    patches, _ = patchify(frame, 4)
    found = normalised(torch.from_numpy(patches), Modality.IMAGE)
    assert found.dtype == torch.float32
    for number, patch in enumerate(found.view(2, 3, 4, 4)):
        np.testing.assert_allclose(patch, expected[:, 4 * number : 4 * number + 4].transpose(2, 0, 1), atol=1e-6)


def test_video_values_lie_between_minus_one_and_one():
    values = torch.tensor([0, 255], dtype=torch.uint8).repeat(6)
    assert normalised(values, Modality.VIDEO).tolist() == [-1.0, 1.0] * 6


def test_numbers_that_are_not_bytes_are_normalised_already():
    values = torch.randn(2, 12)
    assert normalised(values, Modality.IMAGE) is values


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
def test_every_pixel_comes_back(modality):
    values = torch.arange(256, dtype=torch.uint8).repeat(3)
    assert torch.equal(pixels(normalised(values, modality), modality), values)
    assert pixels(values, modality) is values
