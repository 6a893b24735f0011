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


# ---------------------------------------------------------------------- direction and magnitude of each operation


def dot(side: int = 11, row: int = 5, column: int = 5) -> Image.Image:
    """One white pixel on black."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[row, column] = 255
    return Image.fromarray(pixels)


def place_of_dot(image: Image.Image) -> tuple[int, int]:
    values = np.asarray(image)[..., 0].astype(int)
    values[values == 128] = 0  # what comes in from outside is grey
    return tuple(int(n) for n in np.unravel_index(values.argmax(), values.shape))


def grey(*values: int) -> Image.Image:
    """One row of grey pixels."""
    return Image.fromarray(np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2))


def row_of(image: Image.Image) -> list[int]:
    return np.asarray(image)[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        # 0.45 of 20 pixels are 9 at full magnitude; a positive level reads further right (below): things move left (up).
        ("translate_x", (10, 10), (10, 1)),
        ("translate_y", (10, 10), (1, 10)),
        # x is read at x + 0.3 y: in row 10 things move left by 3, in row 0 not at all.
        ("shear_x", (10, 12), (10, 9)),
        ("shear_y", (12, 10), (9, 10)),
    ],
)
def test_affine_operations_move_a_pixel_by_hand(name, before, after):
    moved = OPERATIONS[name](dot(20, *before), 1.0)
    assert place_of_dot(moved) == after
    back = tuple(2 * old - new for old, new in zip(before, after, strict=True))
    assert place_of_dot(OPERATIONS[name](dot(20, *before), -1.0)) == back


def test_shear_leaves_the_first_row_and_fills_with_grey():
    assert place_of_dot(OPERATIONS["shear_x"](dot(20, 0, 12), 1.0)) == (0, 12)
    assert np.asarray(OPERATIONS["translate_x"](dot(20), 1.0))[0, -1].tolist() == [128] * 3


def test_rotation_is_thirty_degrees_counter_clockwise():
    # From the centre (20, 20) of 41 pixels, a dot 16 to the right turns to (16 cos 30, 16 sin 30) = (13.9, 8) up.
    turned = place_of_dot(OPERATIONS["rotate"](dot(41, 20, 36), 1.0))
    assert turned == pytest.approx((20 - 8, 20 + 14), abs=1)
    other = place_of_dot(OPERATIONS["rotate"](dot(41, 20, 36), -1.0))
    assert other == pytest.approx((20 + 8, 20 + 14), abs=1)
    assert place_of_dot(OPERATIONS["rotate"](dot(41, 20, 36), 3.0)) == pytest.approx((4, 20), abs=1)  # 90 degrees


@pytest.mark.parametrize(
    ("name", "level", "before", "after"),
    [
        ("invert", 0.7, (0, 10, 255), [255, 245, 0]),
        ("brightness", 1.0, (0, 100, 200), [0, 190, 255]),  # times 1.9
        ("brightness", -1.0, (0, 100, 200), [0, 10, 20]),  # times 0.1
        ("brightness", -2.0, (0, 100, 200), [0, 0, 0]),  # never below nothing
        ("contrast", 1.0, (90, 100, 110), [81, 100, 119]),  # 1.9 times as far from the mean of 100
        ("contrast", -1.0, (50, 100, 150), [95, 100, 105]),
        ("posterize", 1.0, (255, 17, 16, 15), [240, 16, 16, 0]),  # 4 bits stay
        ("posterize", -0.5, (255, 5), [252, 4]),  # 6 bits stay, whatever the sign
        ("solarize", 0.5, (100, 127, 128, 200), [100, 127, 127, 55]),  # from 256 - 128 on, inverted
        ("solarize", -1.0, (100, 200), [155, 55]),  # from 0 on
        ("solarize_add", 1.0, (0, 100, 127, 128, 200), [110, 210, 237, 128, 200]),  # 110 more below 128
        ("solarize_add", -0.5, (0, 127), [55, 182]),
        ("auto_contrast", 0.0, (50, 100, 150), [0, 127, 255]),
        ("equalize", 0.0, (10, 10, 20, 20), [0, 0, 255, 255]),
    ],
)
def test_operations_on_values_by_hand(name, level, before, after):
    if name == "equalize":  # Pillow's needs many pixels
        before, after = tuple(value for value in before for _ in range(256)), [v for v in after for _ in range(256)]
    assert row_of(OPERATIONS[name](grey(*before), level)) == pytest.approx(after, abs=1)


def test_colour_goes_away_from_grey_and_towards_it():
    pixel = Image.fromarray(np.array([[[150, 100, 100]]], np.uint8))  # grey value 0.299 * 150 + 0.701 * 100 = 115
    assert np.asarray(OPERATIONS["color"](pixel, 1.0))[0, 0].tolist() == pytest.approx([182, 86, 86], abs=1)
    assert np.asarray(OPERATIONS["color"](pixel, -1.0))[0, 0].tolist() == pytest.approx([118, 114, 114], abs=1)


def test_sharpness_strengthens_an_edge_and_weakens_it():
    edge = Image.fromarray(np.repeat(np.array([[80] * 3 + [120] * 3] * 5, np.uint8)[..., None], 3, axis=2))
    step = lambda image: int(np.asarray(image)[2, 3, 0]) - int(np.asarray(image)[2, 2, 0])  # noqa: E731
    assert step(OPERATIONS["sharpness"](edge, 1.0)) > 40 > step(OPERATIONS["sharpness"](edge, -1.0))


class Draws:
    """A generator that gives these numbers."""

    def __init__(self, integers, randoms):
        self._integers, self._randoms = iter(integers), iter(randoms)

    def integers(self, _):
        return next(self._integers)

    def random(self):
        return next(self._randoms)


def test_operations_are_drawn_one_after_another_and_their_signs_too():
    names = sorted(OPERATIONS)
    image = np.asarray(grey(40, 100))[None]
    draws = Draws([names.index("brightness"), names.index("invert")], [0.49, 0.0])
    # Magnitude 5 of 10: times 1.45, then inverted.
    assert rand_augment(image, draws, 2, 5.0)[0, 0, :, 0].tolist() == pytest.approx([255 - 58, 255 - 145], abs=1)
    draws = Draws([names.index("brightness")], [0.5])  # the other sign: times 0.55
    assert rand_augment(image, draws, 1, 5.0)[0, 0, :, 0].tolist() == pytest.approx([22, 55], abs=1)
    draws = Draws([names.index("translate_x")], [0.0])
    far = np.asarray(dot(20, 10, 19))[None]
    assert place_of_dot(Image.fromarray(rand_augment(far, draws, 1, 20.0)[0])) == (10, 19 - 18)  # twice 9


def test_erased_rectangles_span_the_stated_shares_and_shapes():
    areas, aspects = [], []
    for seed in range(300):
        before = np.full((1, 60, 60, 3), 7, np.uint8)
        changed = (random_erase(before, np.random.default_rng(seed)) != before).any(axis=-1)[0]
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        areas.append(height * width / 3600)
        aspects.append(height / width)
    # Uniform between 0.02 and 1/3: mean 0.177; shapes between 0.3 and 3.3, as often one way as the other.
    assert 0.015 < min(areas) < 0.05 and 0.28 < max(areas) < 0.36 and np.mean(areas) == pytest.approx(0.177, abs=0.02)
    assert 0.25 < min(aspects) < 0.4 and 2.5 < max(aspects) < 4.2
    assert 0.4 < np.mean(np.array(aspects) > 1) < 0.6
