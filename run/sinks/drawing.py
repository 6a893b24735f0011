"""Lists of a record as pictures, for sinks that draw: a decision a row, an expert a column.

Legend: N decisions, E experts, H W C of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from run.config import RunConfig

PICTURES = 200
"""So many of a kind in a run, as each is a file or a hundred times a number."""
CELL, LINE, MARGIN = 14, 14, 6
"""Pixels: of a square, a line of text, and around the text."""
BRIGHT = 4.0
INK, PAPER = (20, 20, 20), (255, 255, 255)
RAMP = np.array([(12, 16, 58), (34, 74, 134), (36, 138, 141), (128, 196, 105), (252, 243, 168)], dtype=np.float64)
"""Colours from nothing to the brightest, each brighter than the one before, so that they also tell in grey."""


def is_drawn(step: int, config: RunConfig) -> bool:
    """Whether a record of this step gets pictures: the same ones however often the run is resumed, and the last."""
    records = -(-config.steps // config.log_every)
    every = -(-records // PICTURES) * config.log_every
    return step % every == 0 or step == config.steps


def finite(values: list) -> np.ndarray:
    """All that are numbers, in one row."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def heat_map(shares_NE: Sequence[Sequence[float]], rows: Sequence[str]) -> np.ndarray:
    """uint8 [H, W, 3] with names of rows, numbers of columns and a legend. Brightest is BRIGHT times an equal share in all pictures of a
    run, so that they can be compared. What is no number is black."""
    cells_NE = np.asarray(shares_NE, dtype=np.float64)
    num_rows, num_columns = cells_NE.shape
    full = min(1.0, BRIGHT / num_columns)
    font = ImageFont.load_default(10)
    left = MARGIN + max((round(font.getlength(name)) for name in rows), default=0) + MARGIN
    legend = f"share of all choices: dark 0, bright {full:.3g} and more"
    width = left + max(num_columns * CELL, round(font.getlength(legend)) - left + MARGIN) + MARGIN
    picture = Image.new("RGB", (width, LINE + num_rows * CELL + LINE + MARGIN), PAPER)
    squares = Image.fromarray(_coloured(cells_NE / full)).resize(
        (num_columns * CELL, num_rows * CELL), Image.Resampling.NEAREST
    )
    picture.paste(squares, (left, LINE))
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(rows):
        draw.text((MARGIN, LINE + row * CELL), name, INK, font)
    for column in range(0, num_columns, 1 if num_columns <= 10 else 5):
        draw.text((left + column * CELL + 2, 0), str(column), INK, font)
    draw.text((MARGIN, LINE + num_rows * CELL + 2), legend, INK, font)
    return np.asarray(picture)


def _coloured(shares_NE: np.ndarray) -> np.ndarray:
    """[N, E, 3] from shares in [0, 1]; above is as 1."""
    places_NE = np.clip(np.nan_to_num(shares_NE), 0, 1) * (len(RAMP) - 1)
    stops = np.arange(len(RAMP))
    colours = np.stack([np.interp(places_NE, stops, RAMP[:, channel]) for channel in range(3)], axis=-1)
    return np.where(np.isnan(shares_NE)[..., None], 0, colours).round().astype(np.uint8)
