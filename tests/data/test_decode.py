"""Decoding: right pixels and frames, and BadSample for everything else."""

from __future__ import annotations

import contextlib
import io
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import (
    BadSample,
    decode_image,
    decode_json,
    decode_text,
    decode_video,
    encode_mp4,
    encode_png,
)

ORIGINALS = Path(__file__).parents[2].parent / "shared" / "data" / "decode_samples"
GREYS = (10, 40, 70, 100, 130, 160, 190, 220)
"""Grey values of the frames of a clip; far enough apart to be told apart after compression."""


def image_bytes(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def grey_frames(values=GREYS, side=16):
    return np.repeat(np.array(values, np.uint8), side * side * 3).reshape(len(values), side, side, 3)


def shown(frames_THWC):
    """Which of the grey values each frame shows."""
    means = frames_THWC.mean(axis=(1, 2, 3))
    return [int(np.abs(np.array(GREYS) - mean).argmin()) for mean in means]


def timed_clip(stamps, kind="mp4"):
    """A clip with frame i of GREYS at time stamps[i], in milliseconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "10", "g": "3", "bf": "2"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp, frame in zip(stamps, grey_frames(), strict=False):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
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


# --------------------------------------------------------------------------------------------------- video


def test_frames_come_from_the_centres_of_equal_segments():
    clip = encode_mp4(grey_frames(), fps=8)
    assert decode_video(clip, 8).shape == (8, 16, 16, 3)
    assert shown(decode_video(clip, 8)) == [0, 1, 2, 3, 4, 5, 6, 7]
    # four segments of two frames: their centres are where frames 1, 3, 5, 7 begin
    assert shown(decode_video(clip, 4)) == [1, 3, 5, 7]
    assert shown(decode_video(clip, 1)) == [4]
    assert shown(decode_video(encode_mp4(grey_frames(GREYS[:2]), fps=8), 4)) == [0, 0, 1, 1]
    assert shown(decode_video(encode_mp4(grey_frames(GREYS[:1]), fps=8), 3)) == [0, 0, 0]


def test_random_frames_stay_in_their_segments():
    clip = encode_mp4(grey_frames(), fps=8)
    seen = [shown(decode_video(clip, 4, rng=np.random.default_rng(seed))) for seed in range(20)]
    assert all(frame // 2 == segment for frames in seen for segment, frame in enumerate(frames))
    assert len({tuple(frames) for frames in seen}) > 5
    again = decode_video(clip, 4, rng=np.random.default_rng(3))
    assert np.array_equal(again, decode_video(clip, 4, rng=np.random.default_rng(3)))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_variable_frame_rate_goes_by_time(kind):
    # Frames at 0, 10, 20, 30 and 360 ms; the last lasts as long as the mean one, 90 ms: 450 ms in all. The
    # centres of three segments are 75, 225 and 375 ms.
    assert shown(decode_video(timed_clip([0, 10, 20, 30, 360], kind), 3)) == [3, 3, 4]
    # Clips that do not start at 0: 500 ms, 600 ms, and 100 ms for the last.
    assert shown(decode_video(timed_clip([500, 600], kind), 2)) == [0, 1]


def test_encoding_is_deterministic():
    # x264's lookahead makes a difference only now and then, so one repetition would not show it.
    y, x = np.mgrid[:32, :32]
    discs = [np.hypot(x - 8 - 2 * t, y - 16) < 7 for t in range(8)]
    clip = np.repeat(np.array(discs)[..., None], 3, axis=-1) * np.array([200, 40, 60], np.uint8)
    clip += np.random.default_rng(0).integers(0, 30, clip.shape, dtype=np.uint8)
    assert len({encode_mp4(clip, fps=8) for _ in range(100)}) == 1


def test_bad_videos():
    clip = encode_mp4(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), fps=8)
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    for data in (b"", b"no video", clip[:500], clip[:-400], playlist, sound.getvalue()):
        with pytest.raises(BadSample):
            decode_video(data, 2)
    with pytest.raises(BadSample, match="limit of 100"):
        decode_video(clip, 2, max_bytes=100)
    with pytest.raises(BadSample, match=r"limit of 0\.5 s"):
        decode_video(clip, 2, max_seconds=0.5)


def test_a_clip_with_its_header_first_and_its_end_missing_is_bad(tmp_path):
    clip = encode_mp4(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), fps=8)
    path = tmp_path / "clip.mp4"
    with (
        av.open(io.BytesIO(clip)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    front = path.read_bytes()
    assert front.index(b"moov") < front.index(b"mdat")
    assert decode_video(front, 8).shape == (8, 32, 32, 3)
    for share in (0.5, 0.8):
        with pytest.raises(BadSample):
            decode_video(front[: int(share * len(front))], 8)


CLIP = encode_mp4(grey_frames(), fps=8)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100_000), st.binary(min_size=1, max_size=60))
def test_damaged_videos_raise_nothing_else(position, noise):
    data = bytearray(CLIP)
    position %= len(data)
    data[position : position + len(noise)] = noise
    with contextlib.suppress(BadSample):
        assert len(decode_video(bytes(data), 4)) == 4


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason=f"no originals at {ORIGINALS}")
def test_originals_of_several_codecs():
    with tarfile.open(ORIGINALS / "video_originals_5.tar") as tar:
        shapes = {m.name: decode_video(tar.extractfile(m).read(), 4).shape for m in tar if m.isreg()}
    assert shapes["mmaction2_demo.mp4"] == (4, 256, 340, 3) and shapes["fi001_h264_aac.mp4"] == (
        4,
        360,
        480,
        3,
    )
    assert len(shapes) == 5 and all(shape[0] == 4 for shape in shapes.values())
    with tarfile.open(ORIGINALS / "coco_originals_12.tar") as tar:
        photos = [decode_image(tar.extractfile(m).read()) for m in tar if m.isreg() and m.name.endswith(".jpg")]
    assert len(photos) == 12


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
