"""Frames to patches: cropping, scaling, augmenting, cutting. An image is a clip of one frame.

Legend: T frames, H height, W width, C colour channels, L patches, P values of a patch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ASPECT_RATIO = (3 / 4, 4 / 3)
"""Width to height of random crops."""

Box = tuple[float, float, float, float]


def spatial_transform(
    frames_THWC: np.ndarray,
    size: int,
    rng: np.random.Generator | None,
    crop_scale: tuple[float, float] = (0.6, 1.0),
    flip: bool = True,
    crop: bool = True,
    color_jitter: float = 0.0,
    place: float = 0.5,
) -> np.ndarray:
    """uint8 [T, H, W, 3] to uint8 [T, size, size, 3]; all frames of a clip are treated alike.

    With a generator (training): a random crop of a share `crop_scale` of the area, a mirror image half of the
    time, brightness, contrast and saturation each scaled by 1 +- `color_jitter`, and hue turned by up to
    +- `color_jitter` * 180 degrees. Without one
    (evaluation), and with `crop` off: the largest square, at `place` of the longer side's free pixels: 0.5 is the centre, 0 and 1
    are its ends.
    """
    _, height, width, _ = frames_THWC.shape
    box = _square(height, width, place) if rng is None or not crop else _random_box(height, width, rng, crop_scale)
    # Pillow widens its filter when it shrinks, so the result is free of aliasing.
    resized = [
        Image.fromarray(frame_HWC).resize((size, size), Image.Resampling.BICUBIC, box=box) for frame_HWC in frames_THWC
    ]
    frames = np.stack([np.asarray(image) for image in resized])
    if rng is not None and flip and rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if rng is not None and color_jitter > 0:
        frames = _jitter(frames, rng, color_jitter)
    return np.ascontiguousarray(frames)


def patchify(frames_THWC: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, H, W, 3] to patches uint8 [L, 3 * patch * patch] and positions int64 [L, 3].

    Frames outer, patches row by row; inside a patch (channel, y, x), so that a linear layer equals a
    convolution whose weight [out, 3, patch, patch] is flattened. A position is (frame, row, column). Raises
    ValueError if the patches do not fill the frame.
    """
    num_frames, height, width, channels = frames_THWC.shape
    if height % patch or width % patch:
        raise ValueError(f"frames of {height} x {width} pixels cannot be cut into patches of {patch}")
    rows, columns = height // patch, width // patch
    cut = frames_THWC.reshape(num_frames, rows, patch, columns, patch, channels).transpose(0, 1, 3, 5, 2, 4)
    patches_LP = np.ascontiguousarray(cut.reshape(num_frames * rows * columns, channels * patch * patch))
    positions_L3 = np.stack(np.unravel_index(np.arange(len(patches_LP)), (num_frames, rows, columns)), axis=1)
    return patches_LP, positions_L3.astype(np.int64)


def unpatchify(patches_LP: np.ndarray, positions_L3: np.ndarray, patch: int) -> np.ndarray:
    """uint8 [T, H, W, 3] of the patches that stand at these positions; undoes `patchify`."""
    num_frames, rows, columns = positions_L3.max(axis=0) + 1
    cut = np.zeros((num_frames, rows, columns, 3, patch, patch), np.uint8)
    cut[tuple(positions_L3.T)] = patches_LP.reshape(-1, 3, patch, patch)
    return cut.transpose(0, 1, 4, 2, 5, 3).reshape(num_frames, rows * patch, columns * patch, 3)


def _square(height: int, width: int, place: float) -> Box:
    side = min(height, width)
    left, top = (width - side) * place, (height - side) * place
    return left, top, left + side, top + side


def _random_box(height: int, width: int, rng: np.random.Generator, scale: tuple[float, float]) -> Box:
    """A box of a random share of the area and aspect ratio, cut down where it is larger than the frame."""
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(*np.log(ASPECT_RATIO)))
    box_width, box_height = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return left, top, left + box_width, top + box_height


def _jitter(frames_THWC: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    angle = rng.uniform(-np.pi, np.pi) * min(strength, 1.0)
    frames = frames_THWC.astype(np.float32) * brightness
    frames = frames.mean() + (frames - frames.mean()) * contrast
    # In YIQ, hue is the angle and saturation the length of (I, Q).
    turn = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    yiq = frames @ _RGB_TO_YIQ.T
    yiq[..., 1:] = yiq[..., 1:] @ turn.T
    return np.clip(np.rint(yiq @ _YIQ_TO_RGB.T), 0, 255).astype(np.uint8)


_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
