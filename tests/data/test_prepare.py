"""Public layouts to data set folders: contents, failures, and archives that must be refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.decode import decode_image
from data.prepare.__main__ import main
from data.prepare.archives import Limits, members
from data.prepare.passages import clean, is_val, passages
from data.shards import DatasetError, ShardSet, read_info
from data.tokenizer import END_OF_TEXT, Tokenizer
from data.video import encode_mp4

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def jpeg(grey=100, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("L", size, grey).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path, entries, mode="w:gz"):
    """A tar of (name, content); a TarInfo in place of a name is taken as it is."""
    with tarfile.open(path, mode) as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def samples(folder, split="train"):
    shards = ShardSet.open(folder, split)
    return [shards.read(s, i) for s, size in enumerate(shards.sizes) for i in range(size)]


def token_ids(*texts):
    tokenizer = Tokenizer.load()
    return tuple(sorted({END_OF_TEXT}.union(*(tokenizer.encode(text) for text in texts))))


# --------------------------------------------------------------------------------------------- class archive


@pytest.fixture
def pets(tmp_path):
    return pack(
        tmp_path / "pets.tar.gz",
        [
            ("set/dog/1.jpg", jpeg(10)),
            ("set/cat/1.v2.JPEG", jpeg(20)),
            ("set/dog/2.jpg", b"no image"),
            ("set/dog/3.jpg", jpeg(30)[:200]),
            ("set/dog/notes.txt", b"text"),
            ("loose.jpg", jpeg()),
            ("set/cat/._1.jpg", b"left by a file manager"),
        ],
    )


def test_class_archive(tmp_path, pets, capsys):
    out = tmp_path / "out"
    assert main(["class-archive", "--train", pets, "--val", pets, "--out", str(out), "--name-map", "dog=big dog"]) == 0
    info = read_info(out)
    assert info.kind == "image_class" and info.classes == ("cat", "big dog")
    assert info.token_ids == token_ids("cat", "big dog")
    assert {split: s.samples for split, s in info.splits.items()} == {"train": 2, "val": 2}
    found = samples(out)
    assert [s["__key__"] for s in found] == ["000000_set_dog_1", "000001_set_cat_1_v2"]
    assert [(s["cls"], s["jpg"]) for s in found] == [(b"1", jpeg(10)), (b"0", jpeg(20))]
    report = capsys.readouterr().out
    assert "train: 2 samples, 1 shards" in report and "4 failures" in report
    for line in (
        "set/dog/2.jpg: image of 8 bytes",
        "set/dog/notes.txt: no image",
        "loose.jpg: not in the folder",
    ):
        assert line in report


def test_classes_in_a_given_order(tmp_path, pets):
    classes = tmp_path / "classes.json"
    classes.write_text('["dog", "bird"]')
    out = tmp_path / "out"
    assert main(["class-archive", "--train", pets, "--classes", str(classes), "--out", str(out)]) == 0
    assert read_info(out).classes == ("dog", "bird") and [s["cls"] for s in samples(out)] == [b"0"]


def test_resize_reduces_the_short_side_of_larger_images(tmp_path):
    archive = pack(tmp_path / "a.tar", [("x/big.png", jpeg(90, (80, 40))), ("x/small.jpg", jpeg(90, (12, 10)))], "w")
    out = tmp_path / "out"
    assert main(["class-archive", "--train", archive, "--resize", "20", "--out", str(out)]) == 0
    assert [decode_image(s["jpg"]).shape for s in samples(out)] == [(20, 40, 3), (10, 12, 3)]
    assert samples(out)[1]["jpg"] == jpeg(90, (12, 10))


# ------------------------------------------------------------------------------------------ caption archive


def test_caption_archive(tmp_path, capsys):
    archive = pack(tmp_path / "a.tar.gz", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("3.jpg", jpeg(3))])
    texts = [
        {"image": "1.jpg", "captions": ["a dog", "one dog ", ""]},
        {"image": "3.jpg", "captions": []},
        {"image": "4.jpg", "captions": ["absent"]},
    ]
    captions = lines(tmp_path / "a.jsonl", texts)
    out = tmp_path / "out"
    assert main(["caption-archive", "--train", archive, captions, "--out", str(out)]) == 0
    assert read_info(out).kind == "image_caption" and read_info(out).token_ids == token_ids("a dog", "one dog")
    assert [json.loads(s["json"]) for s in samples(out)] == [{"captions": ["a dog", "one dog "]}]
    report = capsys.readouterr().out
    assert "3 failures" in report and "2.jpg: no captions in a.jsonl" in report and "4.jpg: not in a.tar.gz" in report


@pytest.mark.parametrize("line", ["{", "[]", '{"image": "1.jpg"}', '{"image": 1, "captions": []}', "\udcff"])
def test_bad_records_are_named_by_their_line(tmp_path, capsys, line):
    archive = pack(tmp_path / "a.tar.gz", [("1.jpg", jpeg())])
    captions = tmp_path / "a.jsonl"
    captions.write_text('{"image": "0.jpg", "captions": ["x"]}\n' + line + "\n", errors="surrogateescape")
    assert main(["caption-archive", "--train", archive, str(captions), "--out", str(tmp_path / "out")]) == 2
    assert "a.jsonl: line 2" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- clip archive


def test_clip_archive(tmp_path, capsys):
    clip = encode_mp4(np.zeros((4, 16, 16, 3), np.uint8), fps=4)
    archive = pack(tmp_path / "a.tar", [("f/1.mp4", clip), ("n/2.mp4", clip), ("n/3.mp4", clip[:90])], "w")
    records = [{"video": f"{p}.mp4", "label": label} for p, label in (("f/1", "fight"), ("n/2", "no"), ("n/3", "no"))]
    labels = lines(tmp_path / "a.jsonl", records)
    out = tmp_path / "out"
    names = ["fight=people fighting", "no=people not fighting"]
    assert main(["clip-archive", "--train", archive, labels, "--name-map", *names, "--out", str(out)]) == 0
    info = read_info(out)
    assert info.kind == "video_class" and info.classes == ("people fighting", "people not fighting")
    assert [(s["cls"], s["mp4"]) for s in samples(out)] == [(b"0", clip), (b"1", clip)]
    assert "n/3.mp4: video of 90 bytes" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------- text


def test_passages_by_hand():
    text = [
        "one two. three four five. six",
        "seven eight nine ten eleven twelve thirteen fourteen fifteen.",
        "",
        "= Heading =",
        "a b. c",
    ]
    # At least four words each. "six" and the long line make ten, of which four are cut off while there are
    # eight or more. A heading ends a passage, too.
    assert list(passages(text, words=4)) == [
        "one two. three four five.",
        "six seven eight nine",
        "ten eleven twelve thirteen fourteen fifteen.",
        "a b. c",
    ]


def test_wikitexts_marks():
    assert clean(" a 0 @.@ 7 cm , well @-@ known ( ) thing . ") == "a 0.7 cm , well-known thing ."
    assert clean("a b c d e f g h i <unk> j .") == "a b c d e f g h i j ."
    assert clean("a <unk> b c") == ""


@given(st.integers(1, 300), st.sampled_from([0.05, 0.1, 0.25, 0.5]))
def test_val_blocks_are_spread_evenly(blocks, fraction):
    val = [is_val(block, fraction) for block in range(blocks)]
    assert sum(val) == int(blocks * fraction + 0.5)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab.! ", max_size=40), max_size=12), st.integers(2, 6))
def test_passages_keep_the_words_in_order(text, words):
    found = list(passages(text, words))
    assert all(words // 2 < len(passage.split()) < 2 * words for passage in found)
    joined = [word for passage in found for word in passage.split()]
    expected = [word for line in text for word in line.split()]
    assert joined == expected[: len(joined)] and len(expected) - len(joined) <= words


def test_text(tmp_path):
    numbers = [f"sentence number {n} has a few words ." for n in range(900)]
    (tmp_path / "a.txt").write_text("\n".join(numbers[:800]))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("\n".join(numbers[800:]))
    inputs = ["--input", str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")]
    for out in ("x", "y"):
        options = ["--words", "8", "--val-fraction", "0.1", "--out", str(tmp_path / out)]
        assert main(["text", *inputs, *options]) == 0
    train, val = samples(tmp_path / "x"), samples(tmp_path / "x", "val")
    # Of the 16 blocks of 50 in a.txt two are val, of the two in b.txt none (2 * 0.1 rounds to 0).
    assert (len(train), len(val)) == (800, 100)
    assert sorted(s["txt"].decode() for s in train + val) == sorted(numbers)
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path / out).iterdir()) for out in ("x", "y")]
    assert files[0] == files[1]
    assert read_info(tmp_path / "x").token_ids == token_ids(*numbers)


# ------------------------------------------------------------------------------------------ what is refused


def link(kind):
    info = tarfile.TarInfo("x/link.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../x/1.jpg", b"")], r"member '\.\./x/1\.jpg' has a name that leads out"),
        ([("/x/1.jpg", b"")], "leads out"),
        ([("x/../../1.jpg", b"")], "leads out"),
        ([("x\\1.jpg", b"")], "leads out"),
        ([(link(tarfile.SYMTYPE), b"")], "is a link or device"),
        ([(link(tarfile.LNKTYPE), b"")], "is a link or device"),
        ([(link(tarfile.CHRTYPE), b"")], "is a link or device"),
        ([("x/1.jpg", b"1"), ("./x/1.jpg", b"2")], "comes twice"),
        ([("x/1.jpg", bytes(101))], "has 101 bytes, the limit is 100"),
        ([("x/1.jpg", bytes(80)), ("x/2.jpg", bytes(80)), ("x/3.jpg", bytes(80))], "makes 240 bytes in all"),
    ],
)
def test_archives_that_must_be_refused(tmp_path, entries, message):
    path = pack(tmp_path / "a.tar.gz", entries)
    with pytest.raises(DatasetError, match=message) as caught:
        list(members(Path(path), Limits(member=100, archive=200)))
    assert str(caught.value).startswith(path)


def test_damaged_archives_are_named(tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    path = Path(pack(tmp_path / "a.tar.gz", [("x/1.jpg", noise), ("x/2.jpg", noise[::-1])]))
    whole = path.read_bytes()
    for data in (b"", b"no tar", whole[:1000], whole[:70_000]):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=r"a\.tar\.gz: cannot be read after"):
            list(members(path, Limits()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["class-archive"], "at least one of --train, --val, --test"),
        (["class-archive", "--train", "absent.tar"], "absent.tar: no such file"),
        (["class-archive", "--train", "PETS", "--name-map", "cow=a cow"], "no class 'cow' to rename"),
        (["class-archive", "--train", "PETS", "--name-map", "dog="], "CLASS=NAME"),
        (["class-archive", "--train", "PETS", "--resize", "0"], "--resize 0"),
        (["class-archive", "--train", "PETS", "--classes", "PETS"], "JSON list"),
        (["text", "--input", "absent.txt"], "absent.txt"),
        (["text", "--input", "PETS", "--val-fraction", "1"], "--val-fraction"),
    ],
)
def test_wrong_arguments(tmp_path, pets, capsys, arguments, message):
    arguments = [pets if argument == "PETS" else argument for argument in arguments]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


# ----------------------------------------------------------------------------------------------- what stays


def test_complete_output_is_left_alone_and_incomplete_output_redone(tmp_path, pets, capsys):
    out = tmp_path / "out"
    command = ["class-archive", "--train", pets, "--out", str(out)]
    assert main(command) == 0
    shard = out / "train-000000.tar"
    whole, before = shard.read_bytes(), shard.stat().st_mtime_ns
    assert main(command) == 0 and shard.stat().st_mtime_ns == before
    assert "left alone" in capsys.readouterr().out
    assert main([*command, "--overwrite"]) == 0 and shard.stat().st_mtime_ns != before
    (out / "dataset.json").unlink()
    shard.write_bytes(b"cut off")
    assert main(command) == 0 and shard.read_bytes() == whole
    (out / "my notes").write_text("keep")
    assert main([*command, "--overwrite"]) == 2 and "my notes" in capsys.readouterr().err
    assert shard.read_bytes() == whole


def test_a_split_without_a_sample_is_an_error(tmp_path, capsys):
    archive = pack(tmp_path / "a.tar.gz", [("x/1.jpg", b"no image")])
    assert main(["class-archive", "--train", archive, "--out", str(tmp_path / "out")]) == 2
    assert "split train has no sample; 1 failures" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
@pytest.mark.slow
def test_real_small(tmp_path):
    assert main(["real-small", "--data", str(REAL), "--out", str(tmp_path)]) == 0
    sizes = {p.name: {k: s.samples for k, s in read_info(p).splits.items()} for p in tmp_path.iterdir()}
    assert sizes["cifar10"] == {"train": 10_000, "val": 2_000} and sizes["flickr8k"] == {
        "train": 2_400,
        "val": 500,
    }
    assert sizes["fights"] == {"train": 180, "val": 40} and set(sizes["text"]) == {"train", "val"}
    assert read_info(tmp_path / "fights").classes == ("people fighting", "people not fighting")
