"""Cropping, scaling and cutting into patches. Legend: T frames, H height, W width, C channels, L patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.visual.transform import patchify, spatial_transform, unpatchify


def noise(frames=1, height=12, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def columns(width, height):
    """Every pixel says its column: 10 times its number."""
    row = (10 * np.arange(width)).astype(np.uint8)
    return np.broadcast_to(row[None, None, :, None], (1, height, width, 3))


def test_evaluation_takes_the_central_square():
    # 16 wide, 8 high: columns 4 to 11 are the square in the middle, and 8 pixels need no scaling.
    square = spatial_transform(columns(16, 8), 8, None)
    assert square.shape == (1, 8, 8, 3) and square.dtype == np.uint8
    assert square[0, 0, :, 0].tolist() == [40, 50, 60, 70, 80, 90, 100, 110]


def test_a_frame_of_the_right_size_stays_as_it_is():
    frames = noise(2, 8, 8)
    assert np.array_equal(spatial_transform(frames, 8, None), frames)
    assert np.array_equal(spatial_transform(frames, 8, np.random.default_rng(0), flip=False, crop=False), frames)


def test_shrinking_does_not_alias():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(spatial_transform(stripes, 16, None).astype(int) - 127).max() < 20


def test_flip_mirrors_half_of_the_time():
    frames = noise(1, 8, 8)
    same = [
        np.array_equal(spatial_transform(frames, 8, np.random.default_rng(seed), crop=False), frames)
        for seed in range(40)
    ]
    mirrored = [
        np.array_equal(spatial_transform(frames, 8, np.random.default_rng(seed), crop=False), frames[:, :, ::-1])
        for seed in range(40)
    ]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 10 < sum(same) < 30


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(3, 30), st.integers(3, 30), st.sampled_from([0.0, 0.4]))
def test_all_frames_of_a_clip_are_treated_alike(seed, height, width, jitter):
    frames = np.repeat(noise(1, height, width), 3, axis=0)
    out = spatial_transform(frames, 8, np.random.default_rng(seed), color_jitter=jitter)
    assert out.shape == (3, 8, 8, 3) and out.dtype == np.uint8
    assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])
    again = spatial_transform(frames, 8, np.random.default_rng(seed), color_jitter=jitter)
    assert np.array_equal(out, again)


def test_crops_hold_the_asked_for_area():
    # In a frame of 100 x 100 whose pixels say their column, a crop's range of values is its width. A quarter
    # of the area and aspect ratios of 3/4 to 4/3 make widths of 50 * sqrt(3/4) = 43 to 50 * sqrt(4/3) = 58.
    frames = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 100, 100, 3))
    widths = []
    for seed in range(50):
        crop = spatial_transform(frames, 50, np.random.default_rng(seed), crop_scale=(0.25, 0.25), flip=False)
        widths.append(int(crop.max()) - int(crop.min()))
    assert 40 <= min(widths) < 46 and 54 < max(widths) <= 60


def test_jitter_changes_brightness():
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    values = {int(spatial_transform(grey, 4, np.random.default_rng(s), color_jitter=0.3).mean()) for s in range(20)}
    assert min(values) >= 70 and max(values) <= 130 and len(values) > 5
    assert (spatial_transform(grey, 4, None, color_jitter=0.3) == 100).all()


def test_patches_by_hand():
    # One frame of 2 x 4 pixels in patches of 2: pixel (y, x) has the channels 100y + 10x + (0, 1, 2).
    y, x, c = np.meshgrid(np.arange(2), np.arange(4), np.arange(3), indexing="ij")
    frames = (100 * y + 10 * x + c).astype(np.uint8)[None]
    patches, positions = patchify(frames, 2)
    assert patches.dtype == np.uint8 and positions.dtype == np.int64
    assert patches.tolist() == [
        [0, 10, 100, 110, 1, 11, 101, 111, 2, 12, 102, 112],
        [20, 30, 120, 130, 21, 31, 121, 131, 22, 32, 122, 132],
    ]
    assert positions.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_patches_equal_a_convolution():
    frames, weight = noise(3, 8, 12), torch.randn(5, 3, 4, 4)
    patches, positions = patchify(frames, 4)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.conv2d(pixels, weight, stride=4)  # [T, 5, 2, 3]
    found = torch.from_numpy(patches).float() @ weight.flatten(1).T
    for row, (frame, y, x) in zip(found, positions.tolist(), strict=True):
        torch.testing.assert_close(row, expected[frame, :, y, x], rtol=1e-5, atol=1e-2)
    assert len(found) == 3 * 2 * 3


def test_patches_must_fill_the_frame():
    with pytest.raises(ValueError, match=r"12 x 16 pixels .* patches of 5"):
        patchify(noise(), 5)
    for height, width in ((8, 10), (10, 8)):  # one side is enough
        with pytest.raises(ValueError, match="patches of 4"):
            patchify(noise(1, height, width), 4)


class Draws:
    """A generator that gives these numbers, whatever it is asked for."""

    def __init__(self, *values):
        self._values = list(values)

    def uniform(self, low, high, size=None):
        if size is None:
            return self._values.pop(0)
        return np.array([self._values.pop(0) for _ in range(size)])

    def random(self):
        return self._values.pop(0)


def jittered(color, brightness, contrast, saturation, angle, strength=0.5):
    frames = np.array(color, np.uint8).reshape(1, 1, -1, 3)
    frames = np.repeat(frames, frames.shape[2], axis=1)  # a square
    draws = Draws(brightness, contrast, saturation, angle)
    return spatial_transform(frames, frames.shape[2], draws, flip=False, crop=False, color_jitter=strength)[
        0, 0
    ].tolist()


def test_jitter_by_hand():
    assert jittered([[100, 100, 100]], 1.2, 1.0, 1.0, 0.0) == [[120] * 3]
    # Contrast 1.5 around the mean of 100.
    assert jittered([[80] * 3, [120] * 3], 1.0, 1.5, 1.0, 0.0) == [[70] * 3, [130] * 3]
    # Saturation 0 leaves the luminance: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2.
    assert jittered([[200, 100, 50]], 1.0, 1.0, 0.0, 0.0) == [[124] * 3]
    # Hue turned by 180 degrees: luminance stays, every difference from it changes its sign: 124.2 - (200 - 124.2) ...
    assert jittered([[200, 100, 50]], 1.0, 1.0, 1.0, np.pi, strength=1.0) == [pytest.approx([48, 148, 198], abs=1)]


def test_hue_turns_by_a_share_of_half_a_circle_and_by_no_more():
    # The draw is an angle between -pi and pi, of which `strength` is used, at most all of it.
    half = jittered([[200, 100, 50]], 1.0, 1.0, 1.0, np.pi, strength=0.5)
    assert half == jittered([[200, 100, 50]], 1.0, 1.0, 1.0, np.pi / 2, strength=1.0)
    assert jittered([[200, 100, 50]], 1.0, 1.0, 1.0, 1.0, strength=2.0) == jittered(
        [[200, 100, 50]], 1.0, 1.0, 1.0, 1.0, 1.0
    )


def test_jitter_draws_between_one_minus_and_one_plus_its_strength():
    asked = []

    class Asking(Draws):
        def uniform(self, low, high, size=None):
            asked.append((low, high, size))
            return np.ones(size) if size else 0.0

    spatial_transform(noise(1, 4, 4), 4, Asking(), flip=False, crop=False, color_jitter=0.3)
    assert asked == [(0.7, 1.3, 3), (-np.pi, np.pi, None)]


def test_crops_take_the_drawn_area_shape_and_place():
    # A frame of 100 x 100: area 0.25, aspect 1 (log 0), left 10, top 30: columns 10 to 59.
    frames = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 100, 100, 3))
    crop = spatial_transform(frames, 50, Draws(0.25, 0.0, 10.0, 30.0), crop_scale=(0.1, 1.0), flip=False)
    assert (int(crop.min()), int(crop.max())) == (10, 59)
    # Twice as wide as high: sqrt(0.32 * 2) = 80 columns, 40 rows.
    rows = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
    wide = (0.32, np.log(2.0), 5.0, 30.0)
    assert np.ptp(spatial_transform(frames, 80, Draws(*wide), crop_scale=(0.1, 1.0), flip=False)) == pytest.approx(
        79, abs=1
    )
    assert np.ptp(spatial_transform(rows, 80, Draws(*wide), crop_scale=(0.1, 1.0), flip=False)) == pytest.approx(
        39, abs=1
    )


def test_a_drawn_half_mirrors():
    frames = columns(8, 8)
    assert spatial_transform(frames, 8, Draws(0.49), crop=False)[0, 0, :, 0].tolist() == [70, 60, 50, 40, 30, 20, 10, 0]
    assert spatial_transform(frames, 8, Draws(0.5), crop=False)[0, 0, 0, 0] == 0


def test_patches_are_put_together_again():
    frames = noise(3, 8, 12)
    assert np.array_equal(unpatchify(*patchify(frames, 4), 4), frames)
