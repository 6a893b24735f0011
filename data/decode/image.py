"""Images, text and JSON of a sample to arrays and text; clips are in data/decode/video.py.

Input is untrusted: sizes are checked first, and whatever a codec raises becomes BadSample.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.decode.text import one_line
from data.shards.errors import BadSample

_FORMATS = ("JPEG", "PNG", "WEBP")


def decode_image(data: bytes, max_pixels: int = 64_000_000) -> np.ndarray:
    """JPEG, PNG or WebP to uint8 [H, W, 3]; transparent parts become black. Raises BadSample."""
    try:
        # Pillow warns of decompression bombs at a size of its own; the limit here is ours.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image of {width} x {height} pixels, more than the limit of {max_pixels}")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image_rgb = Image.new("RGB", image.size)
                image_rgb.paste(rgba, mask=rgba)
            else:
                image_rgb = image.convert("RGB")
            return np.array(image_rgb)
    except BadSample:
        raise
    except UnidentifiedImageError as error:  # its own words hold an address in memory
        raise BadSample(f"image of {len(data)} bytes: not a JPEG, PNG or WebP") from error
    except Exception as error:  # Pillow's plugins raise nearly every built-in type
        raise BadSample(f"image of {len(data)} bytes: {one_line(error)}") from error


def encode_png(image_HWC: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()
