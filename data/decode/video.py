"""Clips to frames and back.

Input is untrusted: sizes are checked first, the clock is looked at between packets, and whatever FFmpeg raises becomes
BadSample. A clip is decoded with one thread by a decoder that is opened and closed for it alone: decoders inherited over
fork hang, and those that are kept open leak.

    bytes -> packets (all of them, not decoded) -> Timeline -> which frames are wanted -> decode those -> uint8 [T, H, W, 3]

Decoding jumps: it goes on at the last key frame before a wanted frame, and passes over frames that no other one needs. It
gives what decoding everything gives, or notices that it does not and everything is decoded.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Sequence

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from data.config import Sampling
from data.decode.matroska import missing_bytes
from data.decode.text import one_line
from data.shards.errors import BadSample

MAX_FRAME_PIXELS = 16_000_000
"""Of a video; 4K has 8.3 million."""

# Not among them: playlists (HLS, concat and others), which make FFmpeg open further files and addresses.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf"
# In these, a frame marked as no reference is one for nobody. Not so in HEVC, where it may be one for higher layers.
_SKIPPING_IS_EXACT = ("h264", "mpeg4", "mpeg1video", "mpeg2video")
# On frames of 32 pixels, what x264 decides by looking ahead varies from run to run (not so with asm=0).
# Without lookahead the same frames give the same bytes.
_X264 = "rc-lookahead=0:mbtree=0:weightp=0:bframes=0:scenecut=0:threads=1"


class _Unsure(Exception):
    """Jumping may have given other frames than decoding everything would."""


class _Clock:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise BadSample(f"decoding the video takes longer than the limit of {self.seconds:g} s")


def decode_video(
    data: bytes,
    num_frames: int,
    sampling: Sampling = "segment",
    stride_s: float = 0.0,
    rng: np.random.Generator | None = None,
    max_bytes: int = 256 << 20,
    max_seconds: float = 300.0,
    max_wall_s: float = 60.0,
    jump: bool = True,
    clips: int = 1,
) -> np.ndarray:
    """`num_frames` frames of the clip: uint8 [T, H, W, 3], turned as its rotation mark says. Raises BadSample.

    clips: so many sets of frames, one after the other [clips T, H, W, 3], evenly apart in what sampling leaves open (evaluation alone).

    `positions` tells which points in time are wanted. A point shows the last frame that starts at or before it, whatever
    the frame rate does; clips of few frames repeat them. `max_seconds` limits the clip's length, `max_wall_s` the time
    that decoding it takes. `jump=False` decodes everything; it is there to compare with.
    """
    if len(data) > max_bytes:
        raise BadSample(f"video of {len(data)} bytes, more than the limit of {max_bytes}")
    missing = missing_bytes(data)
    if missing:
        raise BadSample(f"the video is cut off: at its {len(data)} bytes' end, {missing} or more are missing")
    clock = _Clock(max_wall_s)
    try:
        with open_container(data) as container:
            clip = _read(container, clock, max_seconds)
            stride = stride_s / clip.timeline.seconds
            phases = [(number + 0.5) / clips for number in range(clips)]
            shares_T = np.concatenate([positions(num_frames, sampling, stride, rng, phase) for phase in phases])
            order_T = np.argsort(
                shares_T, kind="stable"
            )  # decoding goes forward, and several clips lie among each other
            points_T = clip.timeline.points(shares_T[order_T])
            back_T: slice | np.ndarray = slice(None) if clips == 1 else np.argsort(order_T)
            if not jump or not clip.can_jump:
                return _everything(clip, points_T, clock)[back_T]
            with contextlib.suppress(_Unsure):
                return _jumping(clip, points_T, clock)[back_T]
        with open_container(data) as container:
            return _everything(_read(container, clock, max_seconds), points_T, clock)[back_T]
    except BadSample:
        raise
    except Exception as error:  # FFmpeg's errors, and PyAV's own for streams that it does not expect
        raise BadSample(f"video of {len(data)} bytes: {one_line(error)}") from error


def open_container(data: bytes) -> InputContainer:
    return av.open(io.BytesIO(data), "r", container_options={"format_whitelist": _CONTAINERS})


def positions(
    num_frames: int, sampling: Sampling, stride: float, rng: np.random.Generator | None, phase: float = 0.5
) -> np.ndarray:
    """Points [T] in the clip's time, as shares of it; rising, in [0, 1).

    segment   equal segments; a random point of each with a generator (training), their centres without
    uniform   the same, but one draw for all segments: points stay equally far apart
    stride    points `stride` (a share of the clip) apart in a window of num_frames * stride, which starts at random, or
              lies in the middle without a generator; a clip shorter than the window repeats its last frame

    phase: without a generator, the place in each segment, or of the window among its places; 0.5 is the middle.
    """
    steps_T = np.arange(num_frames)
    if sampling == "stride":
        free = max(0.0, 1 - num_frames * stride)
        start = free * (phase if rng is None else rng.random())
        return np.minimum(start + (steps_T + 0.5) * stride, np.nextafter(1, 0))
    if rng is None:
        return (steps_T + phase) / num_frames
    return (steps_T + rng.random(num_frames if sampling == "segment" else 1)) / num_frames


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When frames start, in rising order and in `tick`s (seconds). Without time stamps, as in some AVI: their numbers."""

    stamps: Sequence[int]
    tick: float

    @property
    def span(self) -> float:
        """Of the whole clip, in ticks; the last frame lasts as long as the mean one."""
        elapsed = self.stamps[-1] - self.stamps[0]
        return elapsed + (elapsed / (len(self.stamps) - 1) if elapsed else 1)

    @property
    def seconds(self) -> float:
        return self.span * self.tick

    def points(self, shares_T: np.ndarray) -> np.ndarray:
        """Shares of the clip's time as ticks."""
        return self.stamps[0] + shares_T * self.span

    def shown(self, point: float) -> int:
        """The stamp of the frame that a point in time shows."""
        return self.stamps[max(0, bisect.bisect_right(self.stamps, point) - 1)]


@dataclasses.dataclass(frozen=True)
class _Clip:
    """packets: from the first key frame on; the last one is empty and makes the decoder give what it holds back."""

    stream: VideoStream
    packets: list[Packet]
    timeline: Timeline
    timed: bool

    @property
    def can_jump(self) -> bool:
        """Frames can be told apart by their stamps."""
        return self.timed and len(set(self.timeline.stamps)) == len(self.timeline.stamps)


def _read(container: InputContainer, clock: _Clock, max_seconds: float) -> _Clip:
    stream = video_stream(container)
    context = stream.codec_context
    context.thread_count = 1
    context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    width, height = context.width, context.height
    if not 0 < width * height <= MAX_FRAME_PIXELS:
        raise BadSample(f"video of {width} x {height} pixels, the limit is {MAX_FRAME_PIXELS} a frame")

    packets = []
    for packet in container.demux(stream):
        clock.check()
        packets.append(packet)
    num_packets = sum(packet.size > 0 for packet in packets)
    # Headers may count a frame or a few that an edit list hides; a file cut off lacks more.
    if num_packets < min(0.9 * stream.frames, stream.frames - 1):
        raise BadSample(f"the video is cut off: {num_packets} of {stream.frames} frames")
    # What comes before the first key frame cannot be decoded; some decoders would paint on grey.
    first = next((index for index, packet in enumerate(packets) if packet.is_keyframe and packet.size), 0)
    packets = packets[first:]
    if any(packet.is_corrupt for packet in packets):
        raise BadSample("the video has corrupt packets")
    shown = [packet for packet in packets if packet.size and not packet.is_discard]
    stamps = [packet.pts for packet in shown if packet.pts is not None]
    timed = len(stamps) == len(shown)
    if container.format.name == "avi":  # it has no time stamps; those of streams with B-frames are guessed, badly
        timed = timed and all(packet.pts == packet.dts for packet in shown)
    start = packets[0].pts if packets else None
    if timed and first and start is not None:
        stamps = [stamp for stamp in stamps if stamp >= start]
    if not shown:
        raise BadSample("the video has no frame")
    tick = (stream.time_base if timed else 1 / (stream.average_rate or 25)) or 1
    timeline = Timeline(sorted(stamps) if timed else range(len(shown)), float(tick))
    if timeline.seconds > max_seconds:
        raise BadSample(f"video of {timeline.seconds:.0f} s, more than the limit of {max_seconds:g} s")
    return _Clip(stream, packets, timeline, timed)


def video_stream(container: InputContainer) -> VideoStream:
    """The stream to decode; all others are passed over. Covers of albums are videos of one frame to FFmpeg. Raises BadSample."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise BadSample("no video stream")
    for other in container.streams:
        if other.index != streams[0].index:
            other.discard = Discard.all
    return streams[0]


def quarter_turns(frame: av.VideoFrame) -> int:
    """How often its rotation mark says to turn it by 90 degrees against the clock, to show it."""
    return round(frame.rotation / 90) % 4


class _Pictures:
    """Frames to pixels. One converter for the clip: making one costs more than a small frame. Streams may change their size
    on the way, so every frame is brought to the first one's."""

    def __init__(self, clip: _Clip) -> None:
        self.width, self.height = clip.stream.codec_context.width, clip.stream.codec_context.height
        self.converter = VideoReformatter()

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self.converter.reformat(frame, self.width, self.height, "rgb24", threads=1)
        return np.rot90(rgb.to_ndarray(), quarter_turns(frame))


def _jumping(clip: _Clip, points_T: np.ndarray, clock: _Clock) -> np.ndarray:
    """The frames that the points show, decoding little else. Raises _Unsure."""
    stamps_T = [clip.timeline.shown(point) for point in points_T]
    wanted = set(stamps_T)
    context, packets = clip.stream.codec_context, clip.packets
    keys = [(index, p.pts) for index, p in enumerate(packets) if p.is_keyframe and p.size and p.pts is not None]
    skip = context.name in _SKIPPING_IS_EXACT
    pictures, found = _Pictures(clip), dict[int, np.ndarray]()
    place, entry, entered, latest = 0, 0, True, -math.inf
    for stamp in stamps_T:
        last_key = max((index for index, start in keys if start <= stamp), default=0)
        if stamp not in found and last_key > place:
            if place:
                context.flush_buffers()
            place = entry = last_key
            entered, latest = False, -math.inf
        while stamp not in found and place < len(packets):
            clock.check()
            if skip:
                context.skip_frame = "DEFAULT" if packets[place].pts in wanted else "NONREF"
            try:
                frames = packets[place].decode()
            except Exception as error:
                raise _Unsure from error
            for frame in frames:
                # A picture that needs no other; some streams mark frames as keys from which decoding only recovers.
                entered = entered or (frame.pts == packets[entry].pts and frame.pict_type == PictureType.I)
                if not entered:
                    continue
                if frame.is_corrupt or frame.pts is None or frame.pts <= latest:
                    raise _Unsure
                latest = frame.pts
                if latest in wanted:
                    found[latest] = pictures.pixels(frame)
            place += 1
        if stamp not in found:
            raise _Unsure
    return np.stack([found[stamp] for stamp in stamps_T])


def _everything(clip: _Clip, points_T: np.ndarray, clock: _Clock) -> np.ndarray:
    """The frames that the points show, decoding from the start to the last of them."""
    pictures = _Pictures(clip)
    shown: list[np.ndarray] = []
    previous: av.VideoFrame | None = None
    at: float = clip.timeline.stamps[0]
    count = 0
    for packet in clip.packets:
        clock.check()
        for frame in packet.decode():
            if frame.is_corrupt:
                raise BadSample(f"frame {count} of the video is corrupt")
            at = count if not clip.timed else frame.pts if frame.pts is not None else at
            count += 1
            passed = int((points_T[len(shown) :] < at).sum())
            if passed and previous is not None:
                shown += [pictures.pixels(previous)] * passed
            previous = frame
        if len(shown) == len(points_T):
            break
    if previous is None:
        raise BadSample("no frame of the video could be decoded")
    if len(shown) < len(points_T):
        shown += [pictures.pixels(previous)] * (len(points_T) - len(shown))
    return np.stack(shown)


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
