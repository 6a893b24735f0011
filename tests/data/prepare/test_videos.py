"""Clips with classes and with captions, and clips made smaller: miniature copies of every public layout."""

from __future__ import annotations

import io
import json
import tarfile
from fractions import Fraction

import av
import numpy as np
import pytest

from data.decode.video import decode_video, encode_mp4
from data.prepare.reencode import reduce_video
from data.shards import BadSample, read_info
from tests.helpers.clips import TURNS, marked, with_cover
from tests.helpers.places import SHARED
from tests.helpers.public import captions, clip, failures, folder, lines, pack, pack_zip, prepare, samples, written

REAL = SHARED / "data"


def classes_of(out, split="train"):
    """Clip -> class name."""
    info = read_info(out)
    return {sample["mp4"]: info.classes[int(sample["cls"])] for sample in samples(out, split)}


# ------------------------------------------------------------------------------------------------ reduced clips


def facts(data):
    """Size, frame rate and number of frames."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return stream.width, stream.height, stream.average_rate, frames, len(container.streams)


def test_a_small_clip_stays_as_it_is():
    data = clip(size=(32, 16), fps=4)
    assert reduce_video(data, None, None) is None
    assert reduce_video(data, 16, 4.0) is None and reduce_video(data, 20, 30.0) is None


def test_fewer_pixels_and_frames_by_hand():
    # 24 frames at 12 a second, level 8 n; at 4 a second the times are those of frames 0, 3, 6, ...
    data = clip(frames=24, size=(80, 40), fps=12)
    reduced = reduce_video(data, 20, 4.0)
    assert facts(reduced) == (40, 20, 4, 8, 1)
    levels = decode_video(reduced, num_frames=8).mean(axis=(1, 2, 3))
    assert np.allclose(levels, 24 * np.arange(8), atol=3)
    assert reduce_video(data, 20, 4.0) == reduced
    assert facts(reduce_video(data, 20, None)) == (40, 20, 12, 24, 1)
    assert facts(reduce_video(data, None, 5.0))[:4] == (80, 40, 5, 10)
    assert facts(reduce_video(data, None, 12000 / 1001))[2] == Fraction(12000, 1001)


@pytest.mark.parametrize("matrix, turns", TURNS.items())
def test_reduced_clips_are_turned_as_marked(matrix, turns):
    # Four quarters of different colours, 96 x 64 pixels.
    colours_22C = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8)
    picture_HWC = colours_22C.repeat(32, axis=0).repeat(48, axis=1)
    data = marked(encode_mp4(np.stack([picture_HWC] * 12), fps=12), matrix)
    for reduced, side in ((reduce_video(data, None, 4.0), 1), (reduce_video(data, 32, None), 2)):
        expected_HWC = np.rot90(picture_HWC, turns)[::side, ::side].astype(int)
        (shown_HWC,) = decode_video(reduced, num_frames=1)
        assert shown_HWC.shape == expected_HWC.shape
        assert np.abs(shown_HWC - expected_HWC).mean() < 5


def test_a_cover_is_not_what_is_reduced():
    data = clip(frames=24, size=(80, 40), fps=12)
    assert reduce_video(with_cover(data), 20, 4.0) == reduce_video(data, 20, 4.0)


def test_clips_that_cannot_be_reduced():
    data = clip(frames=24, fps=12)
    with pytest.raises(BadSample, match="more than 1 s"):
        reduce_video(data, 8, None, max_seconds=1)
    with pytest.raises(BadSample, match="cannot be encoded again"):
        reduce_video(data[: len(data) // 2], 8, None)


@pytest.mark.shared
def test_real_clips_of_several_codecs_are_reduced():
    with tarfile.open(REAL / "decode_samples" / "video_originals_5.tar") as tar:
        clips = [tar.extractfile(member).read() for member in tar.getmembers()]
    for data in (clips[0], clips[3]):  # MPEG-4 in AVI; H.264 with sound
        reduced = reduce_video(data, 64, 5.0)
        width, height, rate, frames, streams = facts(reduced)
        assert min(width, height) == 64 and rate == 5 and streams == 1
        old_width, old_height, old_rate, old_frames, _ = facts(data)
        assert abs(frames / 5 - old_frames / old_rate) < 0.3 and abs(width / height - old_width / old_height) < 0.05
        assert reduce_video(data, 64, 5.0) == reduced
        before, after = (decode_video(d, num_frames=3).mean(axis=(1, 2)) for d in (data, reduced))
        assert np.abs(before - after).max() < 12


# ------------------------------------------------------------------------------------------------------ classes


def test_kinetics(tmp_path):
    videos = folder(
        tmp_path / "train",
        [
            ("riding a bike/abcdefghijk_000010_000020.mp4", clip(1)),
            ("-dance-_1234.mp4", clip(2)),
            ("x/broken_00000.mp4", clip(3)[:90]),
            ("x/unlisted.mp4", clip(4)),
        ],
    )
    rows = [
        "label,youtube_id,time_start,time_end,split",
        '"riding a bike",abcdefghijk,10,20,train',
        "dancing,-dance-_1234,0,10,train",
        "dancing,broken_00000,3,13,train",
        "dancing,gone_from_yt,30,40,train",
    ]
    out = tmp_path / "out"
    table = written(tmp_path / "train.csv", "\n".join(rows))
    assert prepare("kinetics", "--train", videos, table, "--out", out) == 0
    assert read_info(out).kind == "video_class" and read_info(out).classes == ("dancing", "riding a bike")
    assert classes_of(out) == {clip(1): "riding a bike", clip(2): "dancing"}
    missing = {names[0]: reason for reason, (_, names) in failures(out).items()}
    assert missing["gone_from_yt_000030_000040"] == "not in train"
    assert missing["x/broken_00000.mp4"].startswith("video of N bytes")

    # The same as JSON.
    entries = {
        "abcdefghijk": {"annotations": {"label": "riding a bike", "segment": [10.0, 20.0]}, "subset": "train"},
        "-dance-_1234": {"annotations": {"label": "dancing", "segment": [0, 10]}, "subset": "train"},
    }
    again = tmp_path / "json"
    assert prepare("kinetics", "--train", videos, written(tmp_path / "train.json", entries), "--out", again) == 0
    assert classes_of(again) == classes_of(out)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label,youtube_id\nx,y\n", "no column 'time_start'"),
        ("a.csv", "label,youtube_id,time_start,time_end\nx,y,zero,1\n", "after 0 clips"),
        ("a.csv", "label,youtube_id,time_start,time_end\nx,../y,0,1\n", "leads out of the folder"),
        ("a.json", '{"y": {"annotations": {"label": "x"}}}', 'y: needs "segment" (list)'),
        ("a.json", '{"y": {"annotations": {"label": "x", "segment": [1]}}}', "after 0 clips"),
        ("a.json", "[1]", "after 0 clips"),
    ],
)
def test_faults_of_kinetics_lists(tmp_path, capsys, name, text, message):
    videos = folder(tmp_path / "train", [("1.mp4", clip())])
    assert prepare("kinetics", "--train", videos, written(tmp_path / name, text), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert name in error and message in error and error.count("\n") == 1


def test_moments(tmp_path):
    videos = folder(tmp_path / "training", [("aiming/a_1.mp4", clip(1)), ("bowing/b_2.mp4", clip(2))])
    table = written(tmp_path / "trainingSet.csv", "aiming/a_1.mp4,aiming,3,0\nbowing/b_2.mp4,bowing,2,1\n")
    out = tmp_path / "out"
    assert prepare("moments", "--train", videos, table, "--val", videos, table, "--out", out) == 0
    assert classes_of(out) == classes_of(out, "val") == {clip(1): "aiming", clip(2): "bowing"}


def test_ucf101(tmp_path):
    names = [
        f"{kind}/v_{kind}_g{g:02d}_c{c:02d}.avi"
        for kind in ("Diving", "Archery")
        for g in (1, 2, 3, 4, 5)
        for c in (1, 2)
    ]
    videos = folder(tmp_path / "UCF-101", [(name, clip(n)) for n, name in enumerate(names)])
    test, train = names[:2], names[2:]
    numbers = {"Diving": 1, "Archery": 2}
    lists = folder(
        tmp_path / "lists",
        [
            ("trainlist01.txt", "".join(f"{name} {numbers[name.split('/')[0]]}\r\n" for name in train)),
            ("testlist01.txt", "".join(f"{name}\n" for name in test)),
            ("classInd.txt", "1 Diving\n2 Archery\n"),
        ],
    )
    out = tmp_path / "out"
    assert prepare("ucf101", "--videos", videos, "--lists", lists, "--val-fraction", 0.4, "--out", out) == 0
    info = read_info(out)
    assert info.classes == ("Diving", "Archery")
    assert {name: split.samples for name, split in info.splits.items()}["test"] == 2

    def groups(split):
        return {sample["__key__"].rpartition("_c")[0].partition("_")[2] for sample in samples(out, split)}

    assert groups("train") and groups("val") and not groups("train") & groups("val")
    found = samples(out, "train") + samples(out, "val")
    assert {sample["avi"]: sample["cls"] for sample in found} == {
        clip(n): b"0" if n < 10 else b"1" for n in range(2, 20)
    }


@pytest.mark.parametrize("kind", ["tar", "zip", "folder"])
def test_clip_archive(tmp_path, kind):
    entries = [("f/1.mp4", clip(1)), ("n/2.mp4", clip(2)), ("n/3.mp4", clip(3)[:90]), ("n/4.mp4", clip(4))]
    make = {"tar": lambda *a: pack(*a, "w"), "zip": pack_zip, "folder": folder}[kind]
    videos = make(tmp_path / f"a.{kind}", entries)
    records = [{"video": f"{p}.mp4", "label": label} for p, label in (("f/1", "fight"), ("n/2", "no"), ("n/3", "no"))]
    names = ["--name-map", "fight=people fighting", "no=people not fighting"]
    out = tmp_path / "out"
    listed = lines(tmp_path / "a.jsonl", records)
    assert prepare("clip-archive", "--train", videos, listed, *names, "--no-shuffle", "--out", out) == 0
    assert read_info(out).classes == ("people fighting", "people not fighting")
    assert [(s["cls"], s["mp4"]) for s in samples(out)] == [(b"0", clip(1)), (b"1", clip(2))]
    assert failures(out)["no label in a.jsonl"] == (1, ["n/4.mp4"])
    assert "n/3.mp4" in [name for _, names in failures(out).values() for name in names]
    small = tmp_path / "small"
    options = ["--resize", 8, "--fps", 2]
    assert prepare("clip-archive", "--train", videos, listed, *options, "--no-shuffle", "--out", small) == 0
    assert [facts(s["mp4"])[:4] for s in samples(small)] == [(8, 8, 2, 2)] * 2


def test_a_clip_of_two_classes_is_refused(tmp_path, capsys):
    videos = folder(tmp_path / "in", [("a/1.mp4", clip())])
    listed = written(tmp_path / "a.csv", "a/1.mp4,x\n1.mp4,y\n")
    assert prepare("moments", "--train", videos, listed, "--out", tmp_path / "out") == 2
    assert "a/1.mp4 has two classes" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- captions


def test_msvd(tmp_path):
    videos = folder(
        tmp_path / "clips", [("-4wsuPCjDBc_5_15.avi", clip(1)), ("b_0_9.avi", clip(2)), ("c_1_2.avi", clip(3))]
    )
    text = (
        "# MSVD\n\n-4wsuPCjDBc_5_15 a squirrel eats\n-4wsuPCjDBc_5_15 a squirrel sits\n"
        "b_0_9 a man sings\nc_1_2 a dog\nd_0_1 gone\n"
    )
    described = written(tmp_path / "AllVideoDescriptions.txt", text)
    lists = [
        *("--train-list", written(tmp_path / "train.txt", "-4wsuPCjDBc_5_15\nd_0_1\n")),
        *("--val-list", written(tmp_path / "val.txt", "b_0_9.avi\n")),
    ]
    out = tmp_path / "out"
    assert prepare("msvd", "--videos", videos, "--captions", described, *lists, "--out", out) == 0
    assert read_info(out).kind == "video_caption"
    assert captions(out) == [["a squirrel eats", "a squirrel sits"]] and samples(out)[0]["avi"] == clip(1)
    assert captions(out, "val") == [["a man sings"]]
    assert failures(out) == {"not in clips": (1, ["d_0_1"])}


def test_msrvtt(tmp_path):
    videos = folder(tmp_path / "TrainValVideo", [(f"video{n}.mp4", clip(n)) for n in range(3)])
    info = {
        "videos": [
            {"video_id": f"video{n}", "split": s} for n, s in enumerate(("train", "validate", "train", "train"))
        ],
        "sentences": [
            {"video_id": "video0", "caption": "a car"},
            {"video_id": "video2", "caption": "a bus"},
            {"video_id": "video1", "caption": "a van"},
            {"video_id": "video0", "caption": "one car"},
            {"video_id": "video3", "caption": "gone"},
        ],
    }
    test = {
        "videos": [{"video_id": "video1", "split": "test"}],
        "sentences": [{"video_id": "video1", "caption": "a van"}],
    }
    files = [written(tmp_path / "train_val.json", info), written(tmp_path / "test.json", test)]
    out = tmp_path / "out"
    assert prepare("msrvtt", "--videos", videos, "--info", *files, "--out", out) == 0
    assert captions(out) == [["a car", "one car"], ["a bus"]] and captions(out, "val") == [["a van"]]
    assert captions(out, "test") == [["a van"]]
    assert [s["mp4"] for s in samples(out)] == [clip(0), clip(2)]
    assert failures(out) == {"not in TrainValVideo": (1, ["video3"])}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"videos": [], "sentences": []}, "no videos"),
        ({"videos": [{"video_id": "v", "split": "dev"}], "sentences": []}, "split 'dev'"),
        (
            {"videos": [{"video_id": "v", "split": "train"}], "sentences": [{"video_id": "w", "caption": "x"}]},
            "a caption of 'w'",
        ),
    ],
)
def test_faults_of_msrvtt_files(tmp_path, capsys, content, message):
    videos = folder(tmp_path / "in", [("v.mp4", clip())])
    info = written(tmp_path / "info.json", json.dumps(content))
    assert prepare("msrvtt", "--videos", videos, "--info", info, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
