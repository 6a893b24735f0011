"""Pictures of routed samples: patches and words coloured by expert.

Legend: N decisions, F frames, H rows of patches, W columns of patches; y, x pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from analysis.routing_maps.samples import RoutedSample

Colour = tuple[int, int, int]
APART: tuple[Colour, ...] = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66), (90, 90, 90),
)  # fmt: skip
"""Okabe and Ito's colours, which people with any kind of colour blindness tell apart."""
NOBODY: Colour = (255, 255, 255)
CELL, GAP, LABEL, LINE = 112, 6, 128, 20
FONT = ImageFont.load_default(13)
INK, PAPER = (26, 26, 26), (255, 255, 255)
MAX_FRAMES = 4
MAX_WORDS = 24


def colours(num_experts: int) -> tuple[Colour, ...]:
    """One for each expert; beyond eight they run through the hues, light and dark by turns."""
    if num_experts <= len(APART):
        return APART[:num_experts]
    found: list[Colour] = []
    for expert in range(num_experts):
        red, green, blue = colorsys.hsv_to_rgb(expert / num_experts, 0.75, 0.95 if expert % 2 else 0.65)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(found)


def tinted(
    frame_yx3: np.ndarray, experts_HW: np.ndarray, table: Sequence[Colour], strength: float = 0.6
) -> Image.Image:
    """A frame whose patches have the colours of their experts; those without one stay as they are."""
    grey_yx3 = frame_yx3.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colour_HW3 = np.asarray([*table, NOBODY], dtype=float)[experts_HW]  # -1 is the last
    scale = frame_yx3.shape[0] // experts_HW.shape[0], frame_yx3.shape[1] // experts_HW.shape[1]
    colour_yx3 = colour_HW3.repeat(scale[0], axis=0).repeat(scale[1], axis=1)
    nobody_yx1 = (experts_HW < 0).repeat(scale[0], axis=0).repeat(scale[1], axis=1)[..., None]
    mixed_yx3 = (1 - strength) * grey_yx3 + strength * colour_yx3
    return Image.fromarray(np.where(nobody_yx1, frame_yx3, mixed_yx3).round().astype(np.uint8))


def picture_grid(
    samples: Sequence[RoutedSample], names: Sequence[str], shown: Sequence[int], num_experts: int
) -> Image.Image:
    """A row for each frame: the frame, then how each shown decision routes it; words of a sample below, a line for each decision."""
    table = colours(num_experts)
    width = LABEL + (CELL + GAP) * (1 + len(shown))
    rows = [_header(["", *(names[n] for n in shown)], width)]
    for sample in samples:
        for index in _spread(sample.frames, MAX_FRAMES):
            assert sample.frames is not None
            cells = [Image.fromarray(sample.frames[index])]
            cells += [tinted(sample.frames[index], sample.patch_experts[n, index], table) for n in shown]
            rows.append(
                _row(f"{sample.title}\nframe {index + 1}" if len(sample.frames) > 1 else sample.title, cells, width)
            )
        rows += [_words(sample, n, names[n], table, width) for n in shown if sample.words]
    rows.append(legend(table, width))
    return stacked(rows)


def side_by_side(
    samples: Sequence[Sequence[RoutedSample]],
    names: Sequence[str],
    decisions: Sequence[int],
    num_experts: Sequence[int],
) -> Image.Image:
    """The same samples in several runs, one run a column: how routers of different kinds allot the same patches and words."""
    width = LABEL + (CELL + GAP) * (1 + len(names))
    rows = [_header(["", *names], width)]
    for of_one in zip(*samples, strict=True):
        first = of_one[0]
        for index in _spread(first.frames, 1):
            assert first.frames is not None
            cells = [Image.fromarray(first.frames[index])]
            for sample, decision, experts in zip(of_one, decisions, num_experts, strict=True):
                cells.append(tinted(first.frames[index], sample.patch_experts[decision, index], colours(experts)))
            rows.append(_row(first.title, cells, width))
        if first.words:
            parts = zip(of_one, names, decisions, num_experts, strict=True)
            rows += [
                _words(sample, decision, name, colours(experts), width) for sample, name, decision, experts in parts
            ]
    rows.append(legend(colours(max(num_experts)), width))
    return stacked(rows)


def best_patches(samples: Sequence[RoutedSample], decision: int, num_experts: int, count: int = 10) -> Image.Image:
    """A row for each expert: the patches that its gate is surest of, the surest first."""
    table = colours(num_experts)
    size = CELL // 2
    width = LABEL + (size + GAP) * count
    rows = []
    for expert in range(num_experts):
        row = Image.new("RGB", (width, size + GAP), PAPER)
        draw = ImageDraw.Draw(row)
        draw.rectangle((0, 4, 14, 18), fill=table[expert])
        draw.text((20, 3), f"expert {expert}", fill=INK, font=FONT)
        for number, patch in enumerate(_surest(samples, decision, expert, count)):
            row.paste(
                Image.fromarray(patch).resize((size, size), Image.Resampling.NEAREST),
                (LABEL + number * (size + GAP), 0),
            )
        rows.append(row)
    return stacked(rows)


def animation(samples: Sequence[RoutedSample], names: Sequence[str], num_experts: int, path: Path) -> None:
    """One frame for each sample: what it is, and of each decision the share of its tokens that each expert has. A GIF."""
    frames = [_activation(sample, names, num_experts) for sample in samples]
    height = max(frame.height for frame in frames)
    same = [Image.new("RGB", (frame.width, height), PAPER) for frame in frames]
    for page, frame in zip(same, frames, strict=True):
        page.paste(frame, (0, 0))
    same[0].save(path, save_all=True, append_images=same[1:], duration=900, loop=0)


def shares(sample: RoutedSample, num_experts: int) -> np.ndarray:
    """[N, E]: of the sample's tokens that have an expert."""
    decisions = len(sample.word_experts)
    tokens_NT = np.concatenate([sample.patch_experts.reshape(decisions, -1), sample.word_experts], axis=1).astype(int)
    counts_NE = (tokens_NT[..., None] == np.arange(num_experts)).sum(axis=1)
    return counts_NE / np.maximum(counts_NE.sum(axis=1, keepdims=True), 1)


def legend(table: Sequence[Colour], width: int) -> Image.Image:
    per_row = max(1, width // 46)
    image = Image.new("RGB", (width, LINE * (2 + (len(table) - 1) // per_row)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 2), "experts", fill=INK, font=FONT)
    for expert, colour in enumerate(table):
        left, top = (expert % per_row) * 46, LINE * (1 + expert // per_row)
        draw.rectangle((left, top + 2, left + 14, top + 16), fill=colour)
        draw.text((left + 18, top + 1), str(expert), fill=INK, font=FONT)
    return image


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    image = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        image.paste(row, (0, top))
        top += row.height
    return image


def _activation(sample: RoutedSample, names: Sequence[str], num_experts: int) -> Image.Image:
    table, cell = colours(num_experts), 22
    width = 2 * LABEL + cell * num_experts + GAP
    image = Image.new("RGB", (width, max(CELL + 4 * LINE, LINE * (3 + len(names)))), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 2), sample.title, fill=INK, font=FONT)
    if sample.frames is not None:
        image.paste(Image.fromarray(sample.frames[0]).resize((CELL, CELL), Image.Resampling.NEAREST), (0, LINE))
    draw.text((0, CELL + LINE + 4), " ".join(sample.words)[:80], fill=INK, font=FONT)
    for row, (name, of_one) in enumerate(zip(names, shares(sample, num_experts).tolist(), strict=True)):
        top = LINE * (1 + row)
        draw.text((LABEL, top + 2), name, fill=INK, font=FONT)
        for expert, share in enumerate(of_one):
            left = 2 * LABEL + expert * cell
            fill = tuple(round(share**0.5 * part + (1 - share**0.5) * 245) for part in table[expert])
            draw.rectangle((left, top + 1, left + cell - 2, top + LINE - 2), fill=fill)
    return image


def _header(names: Sequence[str], width: int) -> Image.Image:
    image = Image.new("RGB", (width, LINE), PAPER)
    draw = ImageDraw.Draw(image)
    for column, name in enumerate(names):
        draw.text((LABEL + column * (CELL + GAP), 2), name[:18], fill=INK, font=FONT)
    return image


def _row(title: str, cells: Sequence[Image.Image], width: int) -> Image.Image:
    image = Image.new("RGB", (width, CELL + GAP), PAPER)
    ImageDraw.Draw(image).text((0, 2), title, fill=INK, font=FONT)
    for column, cell in enumerate(cells):
        image.paste(cell.resize((CELL, CELL), Image.Resampling.NEAREST), (LABEL + column * (CELL + GAP), 0))
    return image


def _words(sample: RoutedSample, decision: int, name: str, table: Sequence[Colour], width: int) -> Image.Image:
    image = Image.new("RGB", (width, LINE + 2), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((0, 2), name[:18], fill=INK, font=FONT)
    left: float = LABEL
    for word, expert in zip(sample.words[:MAX_WORDS], sample.word_experts[decision].tolist(), strict=False):
        right = left + draw.textlength(word, font=FONT) + 6
        if right > width:
            break
        draw.rectangle((left, 1, right, LINE - 1), fill=table[expert] if expert >= 0 else NOBODY)
        draw.text((left + 3, 2), word, fill=_ink_on(table[expert] if expert >= 0 else NOBODY), font=FONT)
        left = right + 3
    return image


def _ink_on(colour: Colour) -> Colour:
    return PAPER if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 140 else INK


def _spread(frames: np.ndarray | None, count: int) -> list[int]:
    """Frames from first to last, `count` at most."""
    return (
        [] if frames is None else sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(count, len(frames)))})
    )


def _surest(samples: Sequence[RoutedSample], decision: int, expert: int, count: int) -> list[np.ndarray]:
    found: list[tuple[float, int, np.ndarray]] = []
    for sample in samples:
        if sample.frames is None:
            continue
        experts_FHW, weights_FHW = sample.patch_experts[decision], sample.patch_weights[decision]
        size = sample.frames.shape[1] // experts_FHW.shape[1]
        for f, h, w in zip(*np.nonzero(experts_FHW == expert), strict=True):
            patch = sample.frames[f, h * size : (h + 1) * size, w * size : (w + 1) * size]
            found.append((-float(weights_FHW[f, h, w]), len(found), patch))
    return [patch for _, _, patch in sorted(found, key=lambda item: item[:2])[:count]]
