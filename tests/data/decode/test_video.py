"""Clips: right frames, the same ones whether decoding jumps or not, and BadSample for everything else."""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import tarfile
import types
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.decode import video
from data.decode.video import decode_video, encode_mp4, positions
from data.shards import BadSample
from tests.helpers.clips import TURNS, marked, with_cover
from tests.helpers.limits import within
from tests.helpers.places import SHARED

REAL = SHARED / "data"
ORIGINALS, FIGHTS = REAL / "decode_samples", REAL / "videos_fight"
GREYS = (10, 40, 70, 100, 130, 160, 190, 220)
"""Grey values of the frames of a clip; far enough apart to be told apart after compression."""
X265 = "log-level=none:pools=none:frame-threads=1"
"""Without threads of its own: with them x265 may spin for ever at the end of a clip, waiting for a picture that it has written."""
CODECS = {
    "h264": ("libx264", "mp4", {"preset": "veryfast"}),
    "h264, open GOPs": ("libx264", "matroska", {"preset": "veryfast", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    "h264, intra refresh": ("libx264", "mp4", {"preset": "veryfast", "x264-params": "intra-refresh=1"}),
    "h264 in a transport stream": ("libx264", "mpegts", {"preset": "veryfast"}),
    "hevc": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": X265}),
    "hevc, open GOPs": (
        "libx265",
        "mp4",
        {"preset": "superfast", "x265-params": f"{X265}:open-gop=1:bframes=3"},
    ),
    "mpeg4": ("mpeg4", "mp4", {}),
    "mpeg4 in AVI": ("mpeg4", "avi", {}),
    "mpeg2": ("mpeg2video", "mpegts", {}),
    "mjpeg": ("mjpeg", "avi", {}),
    "vp8": ("libvpx", "webm", {"deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "av1": ("libsvtav1", "mp4", {"preset": "12", "svtav1-params": "lp=1"}),
}


def grey_frames(values=GREYS, side=16):
    return np.repeat(np.array(values, np.uint8), side * side * 3).reshape(len(values), side, side, 3)


def shown(frames_THWC):
    """Which of the grey values each frame shows."""
    means = frames_THWC.mean(axis=(1, 2, 3))
    return [int(np.abs(np.array(GREYS) - mean).argmin()) for mean in means]


def encoded(
    frames, codec="libx264", kind="mp4", options=None, stamps=None, g=12, bf=0, audio=False, **container_options
):
    """A clip of these frames [T, H, W, 3], at `stamps` in milliseconds or 25 a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind, options={k: str(v) for k, v in container_options.items()}) as container:
        rate = 25 if stamps is None else 1000
        stream = container.add_stream(codec, rate=rate, options={"g": str(g), "bf": str(bf), **(options or {})})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        sound = container.add_stream("aac", rate=8000) if audio else None
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = number if stamps is None else stamps[number]
            picture.time_base = Fraction(1, rate)
            container.mux(stream.encode(picture))
            if sound is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 8000, 320 * number
                container.mux(sound.encode(samples))
        for every in container.streams:
            container.mux(every.encode())
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # Of root's processes it makes the caller one of real time; all that the tests start after it would be, and starve the machine.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return buffer.getvalue()


def timed_clip(stamps, kind="mp4"):
    """A clip with frame i of GREYS at time stamps[i], in milliseconds."""
    return encoded(grey_frames()[: len(stamps)], kind=kind, stamps=stamps, options={"crf": "10"}, g=3, bf=2)


@functools.cache
def moving(count=40, height=48, width=64, seed=0):
    """Frames that differ everywhere, so that a wrong frame or a wrong reference shows."""
    generator = np.random.default_rng(seed)
    texture = generator.integers(0, 256, (height + count, width + count, 3), dtype=np.uint8)
    texture = texture // 2 + np.repeat(np.repeat(texture[::8, ::8] // 2, 8, 0), 8, 1)[: height + count, : width + count]
    return np.stack([texture[t : t + height, t // 2 : t // 2 + width] for t in range(count)])


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system tells no schedulers of processes")
def test_making_a_clip_leaves_the_tests_at_their_priority():
    codec, kind, options = CODECS["av1"]
    encoded(grey_frames(side=64), codec, kind, options)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


# ------------------------------------------------------------------------------------------------ sampling


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


def test_positions():
    assert (
        positions(4, "segment", 0, None).tolist()
        == positions(4, "uniform", 0, None).tolist()
        == [0.125, 0.375, 0.625, 0.875]
    )
    # a window of 4 x 0.125 in the middle, its frames at the centres of its quarters
    assert positions(4, "stride", 0.125, None).tolist() == [0.3125, 0.4375, 0.5625, 0.6875]
    # a window longer than the clip starts with it, and what lies behind is its last moment
    assert positions(3, "stride", 0.5, None)[:2].tolist() == [0.25, 0.75]
    assert 0.999 < positions(3, "stride", 0.5, None)[2] < 1
    for sampling, stride in (("segment", 0), ("uniform", 0), ("stride", 0.125)):
        draws = [positions(4, sampling, stride, np.random.default_rng(seed)) for seed in range(50)]
        assert all(points[0] >= 0 and points[-1] < 1 and (np.diff(points) > 0).all() for points in draws)
        assert len({tuple(points) for points in draws}) == 50, "each seed its own"
        assert np.array_equal(draws[7], positions(4, sampling, stride, np.random.default_rng(7)))
        gaps = {round(gap, 9) for points in draws for gap in np.diff(points)}
        assert gaps == {"uniform": {0.25}, "stride": {0.125}}.get(sampling, gaps)
        if sampling != "stride":
            assert all(int(4 * point) == segment for points in draws for segment, point in enumerate(points))


def test_stride_is_in_seconds():
    clip = encode_mp4(grey_frames(), fps=8)  # one second
    # two frames an eighth apart: a window of 1/4 s from 3/8 on, its points at 7/16 and 9/16
    assert shown(decode_video(clip, 2, "stride", 1 / 8)) == [3, 4]
    assert shown(decode_video(clip, 2, "stride", 1 / 2)) == [2, 6]
    assert shown(decode_video(clip, 3, "stride", 0.5)) == [2, 6, 7]
    starts = {tuple(shown(decode_video(clip, 2, "stride", 1 / 8, np.random.default_rng(s)))) for s in range(40)}
    assert starts == {(first, first + 1) for first in range(7)}


# ------------------------------------------------------------------------------------------------- jumping


@functools.cache
def made(name, bf, g):
    codec, kind, options = CODECS[name]
    return encoded(moving(), codec, kind, options, g=g, bf=bf)


@functools.cache
def whole(name, bf, g):
    """Every frame by its stamp, from a decoder that is told nothing."""
    with av.open(io.BytesIO(made(name, bf, g))) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from((0, 2)), st.sampled_from((5, 12, 250)), st.integers(1, 6), st.integers(0, 1 << 30), st.booleans()
)
def test_jumping_gives_what_decoding_everything_gives(name, bf, g, num_frames, seed, together):
    clip = made(name, bf if "mpeg" in name or "h264" in name else 0, g)
    sampling = ("stride", 0.04) if together else ("segment", 0.0)
    jumped, all_decoded = (
        decode_video(clip, num_frames, *sampling, rng=np.random.default_rng(seed), jump=jump) for jump in (True, False)
    )
    assert jumped.shape == (num_frames, 48, 64, 3) and np.array_equal(jumped, all_decoded)


@pytest.mark.parametrize("name", CODECS)
def test_the_frame_is_the_one_that_was_written_there(name):
    """40 frames, equally long: the point p of the clip's time shows frame floor(40 p)."""
    frames = whole(name, 0, 5)
    assert len(frames) == 40
    assert np.array_equal(decode_video(made(name, 0, 5), 40), frames)
    for seed in range(10):
        point = positions(1, "segment", 0, np.random.default_rng(seed))[0]
        (one,) = decode_video(made(name, 0, 5), 1, rng=np.random.default_rng(seed))
        assert np.array_equal(one, frames[int(40 * point)])


def fall_backs(monkeypatch, clip, seeds=10):
    """How often everything was decoded after all."""
    calls, everything = [], video._everything
    with monkeypatch.context() as patch:
        patch.setattr(video, "_everything", lambda *a: (calls.append(1), everything(*a))[1])
        for seed in range(seeds):
            decode_video(clip, 2, rng=np.random.default_rng(seed))
    return len(calls)


def test_who_jumps(monkeypatch):
    refreshed = fall_backs(monkeypatch, made("h264, intra refresh", 0, 5))
    assert refreshed == 10, "x264 marks frames as keys that are not, and this is noticed"
    for name in CODECS:
        if name != "h264, intra refresh":
            assert fall_backs(monkeypatch, made(name, 0, 5)) == 0, name
    assert fall_backs(monkeypatch, made("mpeg4 in AVI", 2, 5)) == 10, "stamps of B-frames in AVI are guesses"


@pytest.mark.parametrize("name", [name for name in CODECS if name != "h264, intra refresh"])
def test_what_lies_between_is_not_decoded(name, monkeypatch):
    """The clock is looked at for each of 41 packets that are read (one is empty) and each that is decoded."""
    looks = []
    monkeypatch.setattr(video._Clock, "check", lambda clock: looks.append(1))
    seed = next(s for s in range(1000) if 0.9 < np.random.default_rng(s).random() < 0.925)  # in the 37th frame
    decoded = []
    for jump in (True, False):
        looks.clear()
        decode_video(made(name, 0, 5), 1, rng=np.random.default_rng(seed), jump=jump)
        decoded.append(len(looks) - 41)
    assert decoded[1] >= 37, "everything up to that frame"
    assert decoded[0] <= 10, "its group of five, and what the decoder holds back"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(10, 400), min_size=7, max_size=7), st.integers(0, 1 << 30))
def test_jumping_with_a_variable_frame_rate(gaps, seed):
    stamps = np.cumsum([0, *gaps]).tolist()
    clip = timed_clip(stamps, "matroska")
    point = positions(1, "segment", 0, np.random.default_rng(seed))[0] * (stamps[-1] + stamps[-1] / 7)
    expected = sum(stamp <= point for stamp in stamps) - 1
    assert shown(decode_video(clip, 1, rng=np.random.default_rng(seed))) == [expected]


# ------------------------------------------------------------------------------------------------ odd clips


def remuxed(clip, kind, keep=lambda number: True, shift=0, **options):
    """Some of its packets in a new container."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(buffer, "w", format=kind, options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and keep(number):
                packet.stream = stream
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                target.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, kind", [("h264", "mpegts"), ("h264", "matroska"), ("mpeg2", "mpegts"), ("mpeg4", "matroska")]
)
def test_without_its_first_key_frame_a_clip_starts_at_the_second(name, kind):
    cut = remuxed(made(name, 0, 5), kind, keep=lambda number: number >= 7)
    for jump in (True, False):
        assert np.array_equal(decode_video(cut, 30, jump=jump), whole(name, 0, 5)[10:])


def test_frames_hidden_by_an_edit_list_are_not_shown():
    clip = made("h264", 0, 5)
    with av.open(io.BytesIO(clip)) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    edited = remuxed(clip, "mp4", shift=stamps[3], avoid_negative_ts="disabled", use_editlist="1")
    with av.open(io.BytesIO(edited)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 3
    for jump in (True, False):
        assert np.array_equal(decode_video(edited, 37, jump=jump), whole("h264", 0, 5)[3:])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_sound_and_covers_are_passed_over(kind):
    same = {"x264-params": video._X264}  # twice the same pictures
    silent, loud = (encoded(moving(), kind=kind, g=5, options=same, audio=audio) for audio in (False, True))
    with av.open(io.BytesIO(loud)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert np.array_equal(decode_video(loud, 6), decode_video(silent, 6))


def test_a_cover_is_no_video():
    clip = made("h264", 0, 5)
    assert np.array_equal(decode_video(with_cover(clip), 4), decode_video(clip, 4))


@pytest.mark.parametrize("matrix, turns", TURNS.items())
def test_clips_are_turned_as_marked(matrix, turns):
    clip = made("h264", 0, 5)
    upright = np.rot90(decode_video(clip, 3), turns, axes=(1, 2))
    for jump in (True, False):
        assert np.array_equal(decode_video(marked(clip, matrix), 3, jump=jump), upright)


def test_time_is_limited(monkeypatch):
    clip = made("h264", 0, 5)
    with pytest.raises(BadSample, match="longer than the limit of 0 s"):
        decode_video(clip, 2, max_wall_s=0)
    # A second passes at every look at the clock: one at the start, one for each of 41 packets (the last is empty), and
    # then one for each packet that is decoded.
    for jump in (True, False):
        ticks = iter(range(1000))
        monkeypatch.setattr(video, "time", types.SimpleNamespace(monotonic=functools.partial(next, ticks)))
        with pytest.raises(BadSample, match="longer than the limit of 42 s"):
            decode_video(clip, 40, max_wall_s=42, jump=jump)
        assert next(ticks) == 44


@pytest.mark.parametrize("name", CODECS)
def test_broken_tails(name):
    clip = made(name, 0, 5)
    for share in (0.3, 0.6, 0.95, 0.999):
        with contextlib.suppress(BadSample):
            assert decode_video(clip[: int(share * len(clip))], 3).shape == (3, 48, 64, 3)


def in_a_process(seed):
    return decode_video(made("h264", 2, 5), 2, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_in_worker_processes(start):
    here = [in_a_process(seed) for seed in range(4)]  # the parent has decoded before it forks
    # multiprocessing's own Pool ends its workers by SIGTERM, which children of our fork server ignore at first.
    with within(120), ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        assert np.array_equal(list(pool.map(in_a_process, range(4))), here)


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


def test_encoding_is_deterministic():
    # x264's lookahead makes a difference only now and then, so one repetition would not show it.
    y, x = np.mgrid[:32, :32]
    discs = [np.hypot(x - 8 - 2 * t, y - 16) < 7 for t in range(8)]
    clip = np.repeat(np.array(discs)[..., None], 3, axis=-1) * np.array([200, 40, 60], np.uint8)
    clip += np.random.default_rng(0).integers(0, 30, clip.shape, dtype=np.uint8)
    assert len({encode_mp4(clip, fps=8) for _ in range(100)}) == 1


@pytest.mark.shared
def test_originals_of_several_codecs():
    with tarfile.open(ORIGINALS / "video_originals_5.tar") as tar:
        clips = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}
    shapes = {name: decode_video(clip, 4).shape for name, clip in clips.items()}
    assert shapes["mmaction2_demo.mp4"] == (4, 256, 340, 3) and shapes["fi001_h264_aac.mp4"] == (4, 360, 480, 3)
    assert len(shapes) == 5 and all(shape[0] == 4 for shape in shapes.values())
    for clip in clips.values():
        jumped, all_decoded = (decode_video(clip, 5, rng=np.random.default_rng(1), jump=jump) for jump in (True, False))
        assert np.array_equal(jumped, all_decoded)


# --------------------------------------------------------------------------------------------------- leaks


@functools.cache
def many():
    """Real clips where there are some, made ones elsewhere; and one that is damaged and one that is no clip."""
    if FIGHTS.is_dir():
        with tarfile.open(FIGHTS / "train.tar") as tar:
            clips = [tar.extractfile(member).read() for member in tar if member.isreg()]
    else:
        clips = [made(name, 0, g) for name in CODECS for g in (5, 12)]
    return [*clips, clips[0][: len(clips[0]) // 2], b"no video"]


def resident_after(clips, count):
    """Bytes of this process that are in memory after decoding `count` clips, and how many were bad."""
    bad = 0
    for number in range(count):
        try:
            decode_video(clips[number % len(clips)], 4, rng=np.random.default_rng(number))
        except BadSample:
            bad += 1
    return psutil.Process(os.getpid()).memory_info().rss, bad


@pytest.mark.parametrize("warm, count", [(200, 200), pytest.param(1000, 5000, marks=pytest.mark.slow)])
def test_memory_stays_flat(warm, count):
    clips = many()
    before, _ = resident_after(clips, warm)
    after, bad = resident_after(clips, count)
    assert bad >= 2 * (count // len(clips))
    assert after < 1.05 * before, f"{before / 2**20:.0f} MiB grew to {after / 2**20:.0f} MiB"


# -------------------------------------------------------------------------------- cut files, deep colours


@pytest.mark.parametrize("kind", ["matroska", "webm"])
@pytest.mark.parametrize("live", [0, 1], ids=["with sizes", "sizes left open"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_matroska_file_is_bad(kind, live, share):
    """FFmpeg plays it as a shorter clip."""
    clip = encoded(moving(), "libvpx" if kind == "webm" else "libx264", kind, {"deadline": "realtime"}, g=5, live=live)
    assert decode_video(clip, 4).shape == (4, 48, 64, 3)
    cut = clip[: int(share * len(clip))]
    with pytest.raises(BadSample, match=r"missing|cut off"):
        decode_video(cut, 4)


@pytest.mark.parametrize(
    ("pixels", "bits"), [("gray10le", 10), ("gray16le", 16), ("yuv420p10le", 10), ("yuv422p12le", 12), ("gbrp12le", 12)]
)
def test_frames_of_more_than_8_bits_are_reduced_to_their_upper_ones(pixels, bits):
    """A ramp from black to white stays one."""
    ramp_W = np.linspace(0, 65535, 64).astype(np.uint16)
    deep = np.repeat(np.repeat(ramp_W[None, :, None], 48, 0), 3, 2)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        assert container.streams.video[0].codec_context.format.components[0].bits == bits
    shown_W = decode_video(buffer.getvalue(), 2)[0, 24].mean(axis=1)
    assert np.abs(shown_W - ramp_W / 257).max() <= 3.0  # of 255, since reducing dithers
