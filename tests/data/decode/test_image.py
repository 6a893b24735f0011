"""Decoding: right pixels and frames, and BadSample for everything else."""

from __future__ import annotations

import contextlib
import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode.image import decode_image, encode_png
from data.decode.text import decode_json, decode_text
from data.shards.errors import BadSample
from tests.helpers.places import SHARED

ORIGINALS = SHARED / "data" / "decode_samples"


def image_bytes(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------- images


def test_png_round_trip():
    image_HWC = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(decode_image(encode_png(image_HWC)), image_HWC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_become_rgb(kind, mode):
    colour = (200, 30, 60) if mode == "RGB" else 90
    decoded = decode_image(image_bytes(Image.new(mode, (9, 6), colour), kind))
    assert decoded.shape == (6, 9, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - np.array(colour)).max() < 12


def test_transparent_pixels_are_black():
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    image.putpixel((1, 0), (255, 255, 255, 0))
    for picture in (image, image.convert("P")):
        assert decode_image(image_bytes(picture, "PNG")).tolist() == [[[255] * 3, [0] * 3]]


def test_bad_images():
    whole = image_bytes(Image.effect_noise((64, 64), 50), "JPEG")
    gif = image_bytes(Image.new("P", (4, 4)), "GIF")
    for data in (b"", b"no image", whole[:100], whole[: len(whole) // 2], gif):
        with pytest.raises(BadSample, match=f"image of {len(data)} bytes"):
            decode_image(data)
    with pytest.raises(BadSample, match="64 x 64 pixels, more than the limit of 4095"):
        decode_image(whole, max_pixels=4095)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=30))
def test_damaged_images_raise_nothing_else(position, noise):
    data = bytearray(encode_png(np.full((16, 16, 3), 7, np.uint8)))
    position %= len(data)
    data[position : position + len(noise)] = noise
    with contextlib.suppress(BadSample):
        decode_image(bytes(data))


@pytest.mark.shared
def test_original_photos():
    with tarfile.open(ORIGINALS / "coco_originals_12.tar") as tar:
        photos = [decode_image(tar.extractfile(m).read()) for m in tar if m.isreg() and m.name.endswith(".jpg")]
    assert len(photos) == 12 and all(min(photo.shape[:2]) > 300 for photo in photos)


# ---------------------------------------------------------------------------------------------------- text


def test_text():
    assert decode_text(" grün \n".encode()) == "grün" == decode_text("grün")
    for data, message in ((b"\xff\xfe", "UTF-8"), (b" \n", "empty"), (b"x" * ((1 << 20) + 1), "limit")):
        with pytest.raises(BadSample, match=message):
            decode_text(data)


def test_json():
    assert decode_json(b'{"captions": ["a"]}') == {"captions": ["a"]}
    bad = (b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"1" * 10_000)
    for data in bad:
        with pytest.raises(BadSample, match="JSON"):
            decode_json(data)
    with pytest.raises(BadSample, match="limit of 5"):
        decode_json(b'{"a": 1}', max_bytes=5)
