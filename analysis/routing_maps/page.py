"""Routing maps to be played with, as one HTML file that loads nothing: any decision, any expert."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from analysis.markup import escaped, json_block
from analysis.routing_maps.drawing import colours
from analysis.routing_maps.samples import RoutedSample

TEMPLATE = Path(__file__).with_name("maps.html")


def page_of(title: str, samples: Sequence[RoutedSample], names: Sequence[str], num_experts: int) -> str:
    content = {
        "decisions": list(names),
        "colours": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours(num_experts)],
        "samples": [
            {
                "title": sample.title,
                "frames": [] if sample.frames is None else [_address(frame) for frame in sample.frames],
                "patches": sample.patch_experts.astype(int).tolist(),
                "words": list(sample.words),
                "word_experts": sample.word_experts.astype(int).tolist(),
            }
            for sample in samples
        ],
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.replace("{{title}}", escaped(title)).replace("{{data}}", json_block(content))


def _address(frame_yx3: np.ndarray) -> str:
    stored = io.BytesIO()
    Image.fromarray(frame_yx3).save(stored, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"
