"""RandAugment and random erasing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data.visual.augment import ERASED_AREA, OPERATIONS, rand_augment, random_erase


def frames(count: int = 2, side: int = 32) -> np.ndarray:
    ramp = np.linspace(20, 230, side, dtype=np.uint8)
    image = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.full((side, side), 90)], axis=-1)
    return np.repeat(image[None].astype(np.uint8), count, axis=0)


def test_the_same_generator_gives_the_same_frames_and_all_alike():
    first, again, other = (rand_augment(frames(), np.random.default_rng(seed), 2, 9) for seed in (1, 1, 2))
    assert first.shape == (2, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(first[0], first[1])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_shape_and_goes_beyond_the_full_magnitude(name):
    image = Image.fromarray(np.random.default_rng(0).integers(20, 230, (32, 32, 3), dtype=np.uint8))
    for level in (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0):
        assert OPERATIONS[name](image, level).size == image.size
    changed = np.asarray(OPERATIONS[name](image, 0.9))
    assert not np.array_equal(changed, np.asarray(image))


@pytest.mark.parametrize(
    "name", ["rotate", "shear_x", "translate_y", "color", "contrast", "brightness", "solarize_add"]
)
def test_magnitude_zero_changes_nothing(name):
    image = Image.fromarray(frames()[0])
    assert np.array_equal(np.asarray(OPERATIONS[name](image, 0.0)), np.asarray(image))


def test_translation_by_hand():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:, 8] = 255
    moved = np.asarray(OPERATIONS["translate_x"](Image.fromarray(image), 1 / 0.45 * 0.5))  # half the width, 5 pixels
    assert moved[:, 3].tolist() == [[255] * 3] * 10


def test_erasing_takes_one_rectangle_of_the_stated_area():
    for seed in range(50):
        before = frames()
        after = random_erase(before, np.random.default_rng(seed))
        changed = (before != after).any(axis=-1)
        assert np.array_equal(changed[0], changed[1])
        rows, columns = np.flatnonzero(changed[0].any(1)), np.flatnonzero(changed[0].any(0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 32**2
        assert changed[0].sum() >= 0.95 * area * 32**2  # a full rectangle; noise may hit the old value
        assert ERASED_AREA[0] * 0.5 <= area <= ERASED_AREA[1] * 1.3
    assert np.array_equal(before, frames())
