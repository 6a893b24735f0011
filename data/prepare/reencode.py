"""Clips of fewer pixels and frames: H.264, the same bytes for the same clip."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from data.shards import BadSample
from data.video import MAX_FRAME_PIXELS

CRF = 20
MAX_RATE = 1000
# What x264 decides by looking ahead varies from run to run on small frames; one thread, and no date in the file.
_X264 = "rc-lookahead=0:mbtree=0:weightp=0:bframes=0:scenecut=0:threads=1"
_CONTAINERS = "mov,mp4,matroska,webm,avi"


def reduce_video(data: bytes, short_side: int | None, fps: float | None, max_seconds: float = 300.0) -> bytes | None:
    """The clip with at most this short side (sides become even) and frame rate, without sound; None if it is small enough.

    A point of time of the new clip shows the last frame that starts at or before it. Raises BadSample.
    """
    if short_side is None and fps is None:
        return None
    try:
        options = {"format_whitelist": _CONTAINERS}
        with av.open(io.BytesIO(data), "r", container_options=options) as container:
            return _reduce(container, short_side, fps, max_seconds)
    except BadSample:
        raise
    except Exception as error:  # FFmpeg's errors, and PyAV's own
        raise BadSample(f"video cannot be encoded again: {type(error).__name__}: {str(error)[:200]}") from error


def _reduce(source: InputContainer, short_side: int | None, fps: float | None, max_seconds: float) -> bytes | None:
    stream = source.streams.video[0]
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    width, height = stream.codec_context.width, stream.codec_context.height
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    if not 0 < rate <= MAX_RATE or not 0 < width * height <= MAX_FRAME_PIXELS:
        raise BadSample(f"video of {width} x {height} pixels with {float(rate):g} frames a second")
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    new_rate = min(rate, Fraction(fps).limit_denominator(1001)) if fps else rate
    if scale == 1.0 and new_rate == rate:
        return None
    new_width, new_height = (max(2, round(side * scale / 2) * 2) for side in (width, height))

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
        x264 = {"crf": str(CRF), "preset": "veryfast", "x264-params": _X264}
        encoder = target.add_stream("libx264", rate=new_rate, options=x264)
        encoder.width, encoder.height, encoder.pix_fmt = new_width, new_height, "yuv420p"
        encoder.codec_context.thread_count = 1
        converter = VideoReformatter()
        frames = source.decode(stream)
        for number, frame in enumerate(_at_rate(frames, stream.time_base, rate, new_rate, max_seconds)):
            small = converter.reformat(frame, new_width, new_height, "yuv420p", interpolation="AREA", threads=1)
            small.pts, small.time_base, small.pict_type = number, 1 / new_rate, 0
            target.mux(encoder.encode(small))
        target.mux(encoder.encode())
    return buffer.getvalue()


def _at_rate(
    frames: Iterator[av.VideoFrame],
    tick: Fraction | None,
    rate: Fraction,
    new_rate: Fraction,
    max_seconds: float,
) -> Iterator[av.VideoFrame]:
    """For every time n / new_rate, the frame shown then; frames without time stamps last 1 / rate each."""
    shown: av.VideoFrame | None = None
    start: Fraction | None = None
    number = 0
    time = Fraction(0)
    for count, frame in enumerate(frames):
        time = Fraction(count) / rate if frame.pts is None or tick is None else frame.pts * tick
        start = time if start is None else start
        time -= start
        if time > max_seconds:
            raise BadSample(f"video of more than {max_seconds:g} s")
        while shown is not None and number / new_rate < time:
            yield shown
            number += 1
        shown = frame
    while shown is not None and number / new_rate < time + 1 / rate:
        yield shown
        number += 1
