"""Decoding: right pixels and frames, and BadSample for everything else."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

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


def deep_png(kind: int, samples: np.ndarray) -> bytes:
    """A PNG of 16 bits, which Pillow does not write: kind 0 grey, 4 grey and alpha, 2 RGB, 6 RGBA; samples [H, W, channels]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_of_sixteen_bits_the_upper_eight_are_taken(kind, channels):
    values = np.array([0, 255, 256, 0x7FFF, 0x8000, 0xFF00, 0xFFFF])
    samples = np.repeat(values[None, :, None], channels, axis=2)
    if kind in (4, 6):
        samples[..., -1] = 0xFFFF  # opaque
    expected = (values >> 8).tolist()
    assert decode_image(deep_png(kind, samples))[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, [255] * 3),
        ("L", 90, [90] * 3),
        ("LA", (90, 255), [90] * 3),
        ("LA", (90, 0), [0] * 3),
        ("P", 7, [7] * 3),
        ("RGB", (9, 8, 7), [9, 8, 7]),
        ("RGBA", (9, 8, 7, 255), [9, 8, 7]),
        ("RGBA", (200, 200, 200, 0), [0] * 3),
        ("I;16", 0x1234, [0x12] * 3),
    ],
)
def test_every_mode_that_a_png_has(mode, colour, rgb):
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    assert decode_image(image_bytes(image, "PNG")).tolist() == [[rgb] * 3] * 2


def test_modes_of_jpegs():
    for mode, colour in (("CMYK", (0, 0, 0, 0)), ("YCbCr", (255, 128, 128)), ("L", 255)):
        assert decode_image(image_bytes(Image.new(mode, (4, 4), colour), "JPEG")).min() >= 254


def test_a_large_text_chunk_is_no_damage_and_an_endless_one_is():
    def with_text(size: int) -> bytes:
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", "x" * size, zip=True)
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (80, 0, 0)).save(buffer, format="PNG", pnginfo=text)
        return buffer.getvalue()

    assert decode_image(with_text(3 << 20))[0, 0].tolist() == [80, 0, 0]
    with pytest.raises(BadSample):
        decode_image(with_text((64 << 20) + 1))


def test_profiles_and_turns_are_not_applied():
    image = Image.new("RGB", (4, 2), (200, 30, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", exif=exif, icc_profile=b"not a profile")
    assert decode_image(buffer.getvalue()).shape == (2, 4, 3)
