"""Clips of fewer pixels and frames: H.264, the same bytes for the same clip."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from data.decode.video import MAX_FRAME_PIXELS, quarter_turns, video_stream
from data.shards import BadSample

CRF = 20
MAX_RATE = 1000
# What x264 decides by looking ahead varies from run to run on small frames; one thread, and no date in the file.
_X264 = "rc-lookahead=0:mbtree=0:weightp=0:bframes=0:scenecut=0:threads=1"
_CONTAINERS = "mov,mp4,matroska,webm,avi"


def reduce_video(data: bytes, short_side: int | None, fps: float | None, max_seconds: float = 300.0) -> bytes | None:
    """The clip with at most this short side (sides become even) and frame rate, without sound; None if it is small enough.

    A point of time of the new clip shows the last frame that starts at or before it, turned as its rotation mark says: the
    new clip has none. Raises BadSample.
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
    stream = video_stream(source)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    width, height = stream.codec_context.width, stream.codec_context.height
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    if not 0 < rate <= MAX_RATE or not 0 < width * height <= MAX_FRAME_PIXELS:
        raise BadSample(f"video of {width} x {height} pixels with {float(rate):g} frames per second")
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    new_rate = min(rate, Fraction(fps).limit_denominator(1001)) if fps else rate
    if scale == 1.0 and new_rate == rate:
        return None
    new_width, new_height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
    converter = VideoReformatter()

    def small(frame: av.VideoFrame) -> av.VideoFrame:
        turns = quarter_turns(frame)
        frame = converter.reformat(frame, new_width, new_height, "yuv420p", interpolation="AREA", threads=1)
        return turned(frame, turns) if turns else frame

    frames = _at_rate(source.decode(stream), stream.time_base, rate, new_rate, max_seconds)
    return _encoded(map(small, frames), new_rate)


def turned(frame: av.VideoFrame, turns: int) -> av.VideoFrame:
    """A frame of yuv420p with even sides, turned by so many times 90 degrees against the clock."""
    height, width = frame.height, frame.width
    pixels = frame.to_ndarray().reshape(-1)
    luma, blue, red = np.split(pixels, (height * width, height * width * 5 // 4))
    planes = [luma.reshape(height, width), *(chroma.reshape(height // 2, width // 2) for chroma in (blue, red))]
    planes = [np.rot90(plane, turns) for plane in planes]
    joined = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, planes[0].shape[1])
    return av.VideoFrame.from_ndarray(joined, format="yuv420p")


def _encoded(frames: Iterator[av.VideoFrame], rate: Fraction) -> bytes:
    """Frames of yuv420p and of the first one's size as H.264 in mp4. Raises BadSample if they are turned on the way."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
        x264 = {"crf": str(CRF), "preset": "veryfast", "x264-params": _X264}
        encoder = target.add_stream("libx264", rate=rate, options=x264)
        encoder.pix_fmt = "yuv420p"
        encoder.codec_context.thread_count = 1
        for number, frame in enumerate(frames):
            if not number:
                encoder.width, encoder.height = frame.width, frame.height
            elif (frame.width, frame.height) != (encoder.width, encoder.height):
                raise BadSample("the video's rotation mark changes on the way")
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, 0
            target.mux(encoder.encode(frame))
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
