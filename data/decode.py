"""Members of a sample to arrays and text.

Input is untrusted: sizes are checked first, and whatever a codec raises becomes BadSample. Video is decoded
with one thread by a decoder that is opened and closed for the one clip: decoders inherited over fork hang,
and those that are kept open leak.
"""

from __future__ import annotations

import io
import json
import warnings
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from PIL import Image

from data.shards.errors import BadSample

# On frames of 32 pixels, what x264 decides by looking ahead varies from run to run (not so with asm=0).
# Without lookahead the same frames give the same bytes.
_X264 = "rc-lookahead=0:mbtree=0:weightp=0:bframes=0:scenecut=0:threads=1"

MAX_FRAME_PIXELS = 16_000_000
"""Of a video; 4K has 8.3 million."""

_FORMATS = ("JPEG", "PNG", "WEBP")
# Not among them: playlists (HLS, concat and others), which make FFmpeg open further files and addresses.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf"


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
    except Exception as error:  # Pillow's plugins raise nearly every built-in type
        raise BadSample(f"image of {len(data)} bytes: {_one_line(error)}") from error


def decode_video(
    data: bytes,
    num_frames: int,
    max_bytes: int = 256 << 20,
    max_seconds: float = 300.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """`num_frames` frames spread over the clip: uint8 [T, H, W, 3]. Raises BadSample.

    The clip's time is cut into equal segments; a frame is taken at the centre of each, or at a random point
    of each when `rng` is given. A point in time shows the last frame that starts at or before it, whatever
    the frame rate does; clips of few frames repeat them.
    """
    if len(data) > max_bytes:
        raise BadSample(f"video of {len(data)} bytes, more than the limit of {max_bytes}")
    offsets_T = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    try:
        with av.open(io.BytesIO(data), "r", container_options={"format_whitelist": _CONTAINERS}) as container:
            return _frames_at(container, (np.arange(num_frames) + offsets_T) / num_frames, max_seconds)
    except BadSample:
        raise
    except Exception as error:  # FFmpeg's errors, and PyAV's own for streams that it does not expect
        raise BadSample(f"video of {len(data)} bytes: {_one_line(error)}") from error


def _frames_at(container: InputContainer, fractions_T: np.ndarray, max_seconds: float) -> np.ndarray:
    """The frames shown at these fractions of the clip's time, in rising order."""
    if not container.streams.video:
        raise BadSample("no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    width, height = context.width, context.height
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise BadSample(f"video of {width} x {height} pixels, the limit is {MAX_FRAME_PIXELS} a frame")

    packets = list(container.demux(stream))  # the last one is empty and makes the decoder give what it holds back
    if any(packet.is_corrupt for packet in packets):
        raise BadSample("the video has corrupt packets")
    stamps = [packet.pts for packet in packets if packet.size]
    times = sorted(stamp for stamp in stamps if stamp is not None)
    timed = len(times) == len(stamps)
    if not timed:  # AVI, for one, has no time stamps: count frames
        times = list(range(len(stamps)))
    if not times:
        raise BadSample("the video has no frame")
    # Headers may count a few frames that an edit list hides; a file cut off lacks more.
    if len(times) < 0.9 * stream.frames:
        raise BadSample(f"the video is cut off: {len(times)} of {stream.frames} frames")
    elapsed = times[-1] - times[0]
    span = elapsed + (elapsed / (len(times) - 1) if elapsed else 1)  # the last frame lasts as long as the mean one
    tick = stream.time_base if timed else 1 / (stream.average_rate or 25)
    if span * float(tick or 0) > max_seconds:
        raise BadSample(f"video of {span * float(tick or 0):.0f} s, more than the limit of {max_seconds:g} s")

    # One converter for the clip: making one costs more than a small frame. Streams may change their size on
    # the way, so every frame is brought to the first one's.
    converter = VideoReformatter()

    def pixels(frame: av.VideoFrame) -> np.ndarray:
        return converter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()

    wanted_T = times[0] + fractions_T * span
    shown: list[np.ndarray] = []
    previous: av.VideoFrame | None = None
    time = times[0]
    for count, frame in enumerate(frame for packet in packets for frame in packet.decode()):
        if frame.is_corrupt:
            raise BadSample(f"frame {count} of the video is corrupt")
        time = count if not timed else frame.pts if frame.pts is not None else time
        passed = int((wanted_T[len(shown) :] < time).sum())
        if passed and previous is not None:
            shown += [pixels(previous)] * passed
        previous = frame
        if len(shown) == len(wanted_T):
            break
    if previous is None:
        raise BadSample("no frame of the video could be decoded")
    if len(shown) < len(wanted_T):
        shown += [pixels(previous)] * (len(wanted_T) - len(shown))
    return np.stack(shown)


def decode_text(data: bytes | str, max_bytes: int = 1 << 20) -> str:
    """UTF-8 to text without white space around it. Raises BadSample; the empty text is one, too."""
    if len(data) > max_bytes:
        raise BadSample(f"text of {len(data)} bytes, more than the limit of {max_bytes}")
    try:
        text = (data.decode("utf-8") if isinstance(data, bytes) else data).strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"text is no UTF-8: {error}") from error
    if not text:
        raise BadSample("the text is empty")
    return text


def decode_json(data: bytes | str, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """A JSON object. Raises BadSample."""
    if len(data) > max_bytes:
        raise BadSample(f"JSON of {len(data)} bytes, more than the limit of {max_bytes}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"JSON: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise BadSample(f"JSON: expected an object, found a {type(content).__name__}")
    return content


def encode_png(image_HWC: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_mp4(frames_THWC: np.ndarray, fps: int) -> bytes:
    """uint8 [T, H, W, 3] (even sides) as H.264 in mp4; the same frames give the same bytes."""
    _, height, width, _ = frames_THWC.shape
    buffer = io.BytesIO()
    # No build or creation time in the file, so its bytes depend on the frames alone.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": "12", "preset": "veryfast", "x264-params": _X264}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _one_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
