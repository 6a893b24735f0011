"""Images, text and JSON of a sample to arrays and text; clips are in data/decode/video.py.

Input is untrusted: sizes are checked first, and whatever a codec raises becomes BadSample.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from data.decode.text import one_line
from data.shards.errors import BadSample

_FORMATS = ("JPEG", "PNG", "WEBP")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Of 8 bits and fewer, which Pillow converts."""
MAX_TEXT_BYTES = 64 << 20
"""Of a PNG's text chunks, which Pillow reads though nobody looks at them; its own limit of 1 MiB refuses good images."""
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES


def decode_image(data: bytes, max_pixels: int = 64_000_000) -> np.ndarray:
    """JPEG, PNG or WebP to uint8 [H, W, 3]; of 16 bits the upper 8; transparent parts become black; colour profiles and the turn that a
    camera notes are not applied. Raises BadSample."""
    try:
        # Pillow warns of decompression bombs at a size of its own; the limit here is ours.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=_FORMATS) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image of {width} x {height} pixels, more than the limit of {max_pixels}")
            if image.mode.startswith("I;16") or image.mode == "I":
                return _upper_bits(image)
            if image.mode not in MODES:
                raise BadSample(
                    f"image of mode {image.mode}: only those of {', '.join(MODES)} and 16 bits of grey are read"
                )
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


def _upper_bits(image: Image.Image) -> np.ndarray:
    """Grey of 16 bits, which Pillow would cut at 255: white nearly everywhere."""
    grey_HW = np.asarray(image).astype(np.int64)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey_HW = np.where(grey_HW == transparent, 0, grey_HW)
    if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
        raise BadSample(f"grey image of values from {grey_HW.min()} to {grey_HW.max()}: more than 16 bits")
    return np.repeat((grey_HW >> 8).astype(np.uint8)[..., None], 3, axis=2)


def encode_png(image_HWC: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()
