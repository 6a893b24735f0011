"""RandAugment and random erasing of uint8 frames [T, H, W, 3]; all frames of a clip are treated alike.

Sources: papers.md 1.5 (DeiT's set) and 3.7. Everything is drawn from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)
FULL_MAGNITUDE = 10
"""Magnitudes are shares of this; larger ones are allowed and go further."""
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)

Operation = Callable[[Image.Image, float], Image.Image]


def rand_augment(frames_THWC: np.ndarray, rng: np.random.Generator, operations: int, magnitude: float) -> np.ndarray:
    """`operations` of the set one after another, drawn with replacement, at `magnitude`; signs are drawn too."""
    names = sorted(OPERATIONS)
    images = [Image.fromarray(frame) for frame in frames_THWC]
    for _ in range(operations):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        level = magnitude / FULL_MAGNITUDE * (1 if rng.random() < 0.5 else -1)
        images = [operation(image, level) for image in images]
    return np.stack([np.asarray(image) for image in images])


def random_erase(frames_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random rectangle replaced by noise, every pixel its own."""
    _, height, width, channels = frames_THWC.shape
    area = height * width * rng.uniform(*ERASED_AREA)
    aspect = math.exp(rng.uniform(*np.log(ERASED_ASPECT)))
    rows = int(np.clip(round(math.sqrt(area * aspect)), 1, height))
    columns = int(np.clip(round(math.sqrt(area / aspect)), 1, width))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    erased = frames_THWC.copy()
    erased[:, top : top + rows, left : left + columns] = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return erased


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _enhance(kind: type) -> Operation:
    """1 leaves the image as it is; at full magnitude 1.9 or 0.1 of it."""
    return lambda image, level: kind(image).enhance(max(0.0, 1 + 0.9 * level))


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, max(1, 8 - round(4 * abs(level)))),
    "solarize": lambda image, level: ImageOps.solarize(image, max(0, 256 - round(256 * abs(level)))),
    "solarize_add": lambda image, level: image.point(lambda v: min(255, v + round(110 * abs(level))) if v < 128 else v),
    "rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=GREY),
    "shear_x": lambda image, level: _affine(image, (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level: _affine(image, (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": lambda image, level: _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": lambda image, level: _affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height)),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
"""DeiT's set."""
