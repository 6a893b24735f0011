"""Images with classes, with captions, from the web, with questions: miniature copies of every public layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data.decode.image import decode_image
from data.prepare.layouts.images import name_synsets
from data.shards import read_info
from data.text.clip_lists import imagenet_names
from tests.helpers.places import SHARED
from tests.helpers.public import (
    captions,
    content,
    failures,
    folder,
    jpeg,
    lines,
    pack,
    pack_zip,
    prepare,
    samples,
    token_ids,
    written,
)

REAL = SHARED / "data"


# ------------------------------------------------------------------------------------------------ class folders


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "folder"])
def test_class_folders_and_archives(tmp_path, kind):
    entries = [
        ("set/dog/1.jpg", jpeg(10)),
        ("set/cat/1.v2.JPEG", jpeg(20)),
        ("set/dog/2.jpg", b"no image"),
        ("set/dog/3.jpg", jpeg(30)[:200]),
        ("set/dog/notes.txt", b"text"),
        ("loose.jpg", jpeg()),
        ("set/cat/._1.jpg", b"left by a file manager"),
    ]
    make = {"tar.gz": pack, "zip": pack_zip, "folder": folder}[kind]
    source = make(tmp_path / f"pets.{kind}", entries)
    out = tmp_path / "out"
    layout = "class-folders" if kind == "folder" else "class-archive"
    options = ["--name-map", "dog=big dog", "--no-shuffle"]
    assert prepare(layout, "--train", source, "--val", source, *options, "--out", out) == 0
    info = read_info(out)
    assert info.kind == "image_class" and info.classes == ("cat", "big dog")
    assert info.token_ids == token_ids("cat", "big dog")
    assert {split: s.samples for split, s in info.splits.items()} == {"train": 2, "val": 2}
    found = {s["__key__"].partition("_")[2]: (s["cls"], s["jpg"]) for s in samples(out)}
    assert found == {"set_dog_1": (b"1", jpeg(10)), "set_cat_1_v2": (b"0", jpeg(20))}
    broken = {names[0]: reason for reason, (_, names) in failures(out).items()}
    assert broken.pop("set/dog/2.jpg").startswith("image of N bytes: not a JPEG")
    assert broken.pop("set/dog/3.jpg").startswith("image of N bytes: OSError")
    assert broken == {"set/dog/notes.txt": "no image", "loose.jpg": "not in the folder of a class (cat, dog)"}


def test_classes_in_a_given_order(tmp_path):
    source = folder(tmp_path / "in", [("dog/1.jpg", jpeg()), ("cat/1.jpg", jpeg())])
    classes = written(tmp_path / "classes.json", ["dog", "bird"])
    out = tmp_path / "out"
    assert prepare("class-folders", "--train", source, "--classes", classes, "--out", out) == 0
    assert read_info(out).classes == ("dog", "bird") and [s["cls"] for s in samples(out)] == [b"0"]


def test_resize_reduces_the_short_side_of_larger_images(tmp_path):
    archive = pack(tmp_path / "a.tar", [("x/big.png", jpeg(90, (80, 40))), ("x/small.jpg", jpeg(90, (12, 10)))], "w")
    out = tmp_path / "out"
    assert prepare("class-archive", "--train", archive, "--resize", 20, "--no-shuffle", "--out", out) == 0
    assert [decode_image(s["jpg"]).shape for s in samples(out)] == [(20, 40, 3), (10, 12, 3)]
    assert samples(out)[1]["jpg"] == jpeg(90, (12, 10))


def test_an_image_too_long_for_a_jpeg_is_left_out_by_its_name(tmp_path):
    # 65,501 pixels of a short side of 3 become 43,667 of 2, which a JPEG can have; 99,000 become 66,000.
    entries = [("x/long.png", jpeg(0, (65_501, 3), "PNG")), ("x/longer.png", jpeg(0, (99_000, 3), "PNG"))]
    source, out = folder(tmp_path / "in", entries), tmp_path / "out"
    assert prepare("class-folders", "--train", source, "--resize", 2, "--out", out) == 0
    assert [decode_image(s["jpg"]).shape for s in samples(out)] == [(2, 43_667, 3)]
    (reason, (count, names)), *others = failures(out).items()
    assert reason.startswith("image cannot be reduced to N x N pixels: OSError") and not others
    assert (count, names) == (1, ["x/longer.png"])


# ----------------------------------------------------------------------------------------------------- ImageNet

SYNSETS = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n"


def imagenet(tmp_path):
    train = [
        (f"{synset}/{synset}_{n}.JPEG", jpeg(10 * c + n))
        for c, synset in enumerate(("n01440764", "n02012849", "n03126707"))
        for n in range(2)
    ]
    val = [(f"ILSVRC2012_val_0000000{n}.JPEG", jpeg(100 + n)) for n in (1, 2, 3)]
    return folder(tmp_path / "train", train), folder(tmp_path / "val", val), written(tmp_path / "words.txt", SYNSETS)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (
            "val.txt",
            "ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000003.JPEG 0\nILSVRC2012_val_00000002.JPEG 1\n",
        ),
        ("labels.txt", "n03126707\nn02012849\nn01440764\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n01440764 85 1 499 272 \n"
            "ILSVRC2012_val_00000001,n03126707 1 1 2 2 n03126707 5 5 8 8 \nILSVRC2012_val_00000002,n02012849 1 1 2 2\n",
        ),
    ],
)
def test_imagenet(tmp_path, name, labels):
    train, val, words = imagenet(tmp_path)
    options = ["--val-labels", written(tmp_path / name, labels), "--synsets", words]
    out = tmp_path / "out"
    assert prepare("imagenet", "--train", train, "--val", val, *options, "--out", out) == 0
    info = read_info(out)
    assert info.classes == ("tench", "crane", "crane (n03126707)") and info.synonyms == (("Tinca tinca",), (), ())
    assert info.token_ids == token_ids(*info.classes, "Tinca tinca")
    assert {(s["cls"], s["jpg"]) for s in samples(out)} == {
        (str(c).encode(), jpeg(10 * c + n)) for c in range(3) for n in range(2)
    }
    by_name = {s["__key__"][-1]: (s["cls"], s["jpg"]) for s in samples(out, "val")}
    assert by_name == {"1": (b"2", jpeg(101)), "2": (b"1", jpeg(102)), "3": (b"0", jpeg(103))}


def test_imagenet_with_a_val_of_folders_and_no_names(tmp_path):
    train, _, _ = imagenet(tmp_path)
    out = tmp_path / "out"
    assert prepare("imagenet", "--train", train, "--val", train, "--out", out) == 0
    info = read_info(out)
    assert info.classes == ("n01440764", "n02012849", "n03126707") and info.splits["val"].samples == 6
    assert info.synonyms == ()


def test_imagenet_variants_of_some_classes_and_of_numbered_folders(tmp_path, capsys):
    _, _, words = imagenet(tmp_path)
    some = folder(tmp_path / "imagenet-a", [("n03126707/a.jpg", jpeg(1)), ("n01440764/b.jpg", jpeg(2))])
    out = tmp_path / "a"
    assert prepare("imagenet", "--val", some, "--synsets", words, "--present", "--no-shuffle", "--out", out) == 0
    # Under the names among all three: of two cranes, the second has its synset in brackets.
    assert read_info(out).classes == ("tench", "crane (n03126707)")
    assert {(s["cls"], s["jpg"]) for s in samples(out, "val")} == {(b"1", jpeg(1)), (b"0", jpeg(2))}
    numbered = folder(tmp_path / "v2", [("0/a.jpg", jpeg(3)), ("2/b.jpg", jpeg(4)), ("7/c.jpg", jpeg(5))])
    out = tmp_path / "v2_out"
    assert prepare("imagenet", "--val", numbered, "--synsets", words, "--out", out) == 0
    assert len(read_info(out).classes) == 3 and sum(count for count, _ in failures(out, "val").values()) == 1
    assert {(s["cls"], s["jpg"]) for s in samples(out, "val")} == {(b"0", jpeg(3)), (b"2", jpeg(4))}
    assert prepare("imagenet", "--val", numbered, "--synsets", words, "--present", "--out", tmp_path / "no") == 2
    assert "--present: no folder is one of the 3 synsets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1\n2\n3\n", "in the order of the development kit"),
        ("n01440764\n", "1 classes for the 3 images"),
        ("ILSVRC2012_val_00000001.JPEG 3\n", "'3' is no synset, nor a number below 3"),
        ("a b c\n", "expected lines 'NAME CLASS'"),
    ],
)
def test_imagenet_labels_that_could_mean_something_else_are_refused(tmp_path, capsys, labels, message):
    train, val, words = imagenet(tmp_path)
    options = ["--val-labels", written(tmp_path / "val.txt", labels), "--synsets", words]
    assert prepare("imagenet", "--train", train, "--val", val, *options, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_imagenet_by_the_names_of_clip(tmp_path, capsys):
    """The list is in the order of the synsets. Two of its names are there twice: the second class keeps a name of its own."""
    _, _, few = imagenet(tmp_path)
    synsets = [f"n{number:08d}" for number in range(1000)]
    again = [n for n, name in enumerate(imagenet_names()) if name in imagenet_names()[:n]]
    lines = [f"{synset} name {n}, other {n}" for n, synset in enumerate(synsets)]
    words = written(tmp_path / "synset_words.txt", "\n".join(lines))
    some = folder(tmp_path / "a", [(f"{synsets[n]}/{n}.jpg", jpeg(n)) for n in (0, 999, again[0])])
    options = ["--val", some, "--present", "--clip-names", "--no-shuffle"]
    out = tmp_path / "out"
    assert prepare("imagenet", *options, "--synsets", words, "--out", out) == 0
    info = read_info(out)
    assert info.classes == ("tench", f"name {again[0]}", "toilet paper") and len(again) == 2
    assert info.synonyms == (("name 0", "other 0"), (f"other {again[0]}",), ("name 999", "other 999"))
    assert prepare("imagenet", *options, "--synsets", few, "--out", tmp_path / "no") == 2
    assert "--clip-names: names of 1,000 classes for 3 synsets: give all of ImageNet-1k" in capsys.readouterr().err


def test_synsets_of_one_name_get_different_names():
    words = {"n1": ["maillot"], "n2": ["maillot", "tank suit", "suit"], "n3": ["crane"], "n4": ["crane", "crane"]}
    assert name_synsets(("n1", "n2", "n3", "n4"), words) == (
        ("maillot", "tank suit", "crane", "crane (n4)"),
        ((), ("suit",), (), ()),
    )


# ----------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_coco_captions(tmp_path, kind):
    entries = [(f"train2017/00000000000{n}.jpg", jpeg(n)) for n in (1, 2, 3, 4)]
    images = pack_zip(tmp_path / "train2017.zip", entries) if kind == "zip" else folder(tmp_path / "images", entries)
    names = [{"id": 10 * n, "file_name": f"00000000000{n}.jpg", "height": 6} for n in (1, 2, 3, 5)]
    texts = [(10, "A cat. "), (20, "Two\ncats."), (10, "One cat."), (50, "absent")]
    annotations = [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(texts)]
    file = written(tmp_path / "captions_train2017.json", {"info": {}, "images": names, "annotations": annotations})
    out = tmp_path / "out"
    assert prepare("coco-captions", "--train", file, images, "--out", out) == 0
    assert read_info(out).kind == "image_caption"
    assert captions(out) == [["A cat.", "One cat."], ["Two\ncats."]]
    assert [s["jpg"] for s in samples(out)] == [jpeg(1), jpeg(2)]
    assert failures(out) == {
        f"not in {Path(images).name}": (1, ["000000000005.jpg"]),
        "no captions in captions_train2017.json": (1, ["000000000003.jpg"]),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, 'needs "annotations" (list)'),
        ({"images": [{"id": 1}], "annotations": []}, 'images[0]: needs "file_name" (str)'),
        ({"images": [], "annotations": [{"image_id": 7, "caption": "x"}]}, "a caption of image 7"),
        ({"images": [{"id": 1, "file_name": "../1.jpg"}], "annotations": []}, "leads out of the folder"),
        ([], 'needs "images" (list)'),
    ],
)
def test_faults_of_coco_files(tmp_path, capsys, content, message):
    file = written(tmp_path / "c.json", content)
    assert prepare("coco-captions", "--train", file, folder(tmp_path / "i", [("1.jpg", b"")]), "--out", tmp_path / "o")
    error = capsys.readouterr().err
    assert "c.json" in error and message in error and error.count("\n") == 1


def of_karpathy(**of_image: object) -> dict:
    return {"filename": "1.jpg", "split": "val", "sentences": [{"raw": "A cat. "}]} | of_image


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_karpathys_splits(tmp_path, kind):
    """COCO's names have a folder, which an archive may lack; images for restval lie beside those of val and are trained on."""
    said = [("train2014", 1, "train"), ("val2014", 2, "restval"), ("val2014", 3, "test"), ("val2014", 4, "test")]
    listed = [
        of_karpathy(
            filepath=where, filename=f"{n}.jpg", split=split, sentences=[{"raw": f"{n} cats."}, {"raw": "Cats."}]
        )
        for where, n, split in said
    ]
    file = written(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": listed})
    both = folder(tmp_path / "coco", [(f"{where}/{n}.jpg", jpeg(n)) for where, n, _ in said])
    held = [("2.jpg", jpeg(2)), ("3.jpg", jpeg(3))]
    test = pack_zip(tmp_path / "val2014.zip", held) if kind == "zip" else folder(tmp_path / "val2014.zip", held)
    out = tmp_path / "out"
    assert prepare("karpathy", "--captions", file, "--train", both, "--test", test, "--out", out) == 0
    assert read_info(out).kind == "image_caption" and set(read_info(out).splits) == {"train", "test"}
    assert captions(out) == [["1 cats.", "Cats."], ["2 cats.", "Cats."]]
    assert [s["jpg"] for s in samples(out)] == [jpeg(1), jpeg(2)]
    assert captions(out, "test") == [["3 cats.", "Cats."]]
    assert failures(out, "test") == {"not in val2014.zip": (1, ["val2014/4.jpg"])}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([of_karpathy(split="testing")], "images[0]: split 'testing' is none of train, restval, val, test"),
        ([of_karpathy(filename="../1.jpg")], "leads out of the folder"),
        ([of_karpathy(filepath="/etc")], "of the folder; refused"),
        ([of_karpathy(filepath=3)], "images[0]: filepath '3' is no text"),
        ([of_karpathy(), of_karpathy(split="train")], "images[1]: 1.jpg is there twice"),
        ([of_karpathy(sentences=["A cat."])], 'sentences[0]: needs "raw" (str)'),
        ([of_karpathy(split="test")], "no image of split val"),
        ([{"filename": "1.jpg", "split": "val"}], 'images[0]: needs "sentences" (list)'),
    ],
)
def test_faults_of_karpathys_file(tmp_path, capsys, images, message):
    file = written(tmp_path / "dataset_coco.json", {"images": images})
    place = folder(tmp_path / "i", [("1.jpg", jpeg())])
    assert prepare("karpathy", "--captions", file, "--val", place, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "dataset_coco.json" in error and message in error and error.count("\n") == 1


TOKENS = "".join(
    f"{name}#{n}\t{text} {n} .\n"
    for name, text in [("1.jpg", "a dog"), ("2.jpg", "a cat"), ("3.jpg", "a cow")]
    for n in (0, 1)
)


def test_flickr(tmp_path):
    images = folder(tmp_path / "images", [(f"{n}.jpg", jpeg(n)) for n in (1, 2, 3)])
    tokens = written(tmp_path / "Flickr8k.token.txt", TOKENS + "2.jpg.1#0\tof a file that is not there\n")
    train = written(tmp_path / "trainImages.txt", "1.jpg\n3.jpg\n")
    val = written(tmp_path / "val.txt", "2\n")  # Flickr30k's lists have no .jpg
    out = tmp_path / "out"
    lists = ["--train-list", train, "--val-list", val]
    assert prepare("flickr", "--tokens", tokens, "--images", images, *lists, "--out", out) == 0
    assert captions(out) == [["a dog 0 .", "a dog 1 ."], ["a cow 0 .", "a cow 1 ."]]
    assert captions(out, "val") == [["a cat 0 .", "a cat 1 ."]] and failures(out) == {}
    out = tmp_path / "all"
    assert prepare("flickr", "--tokens", tokens, "--images", images, "--out", out) == 0
    assert len(samples(out)) == 3 and failures(out) == {"not in images": (1, ["2.jpg.1"])}


@pytest.mark.parametrize(
    ("tokens", "val", "message"),
    [
        ("1.jpg a dog\n", "2\n", "line 1: expected IMAGE.jpg#0<tab>caption"),
        (TOKENS, "1.jpg\n", "1.jpg is in the list of train, too"),
        ("../1.jpg#0\ta dog\n", "2\n", "leads out of the folder"),
    ],
)
def test_faults_of_flickr_files(tmp_path, capsys, tokens, val, message):
    images = folder(tmp_path / "images", [("1.jpg", jpeg())])
    lists = ["--train-list", written(tmp_path / "t.txt", "1.jpg\n"), "--val-list", written(tmp_path / "v.txt", val)]
    options = ["--tokens", written(tmp_path / "r.token", tokens), "--images", images]
    assert prepare("flickr", *options, *lists, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("empty", ["", "  ", "&nbsp;", "\u200b", "\ufeff"])
def test_captions_without_a_word_are_left_out(tmp_path, empty):
    archive = pack(tmp_path / "a.tar.gz", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))])
    texts = [{"image": "1.jpg", "captions": [empty]}, {"image": "2.jpg", "captions": [empty, "a dog", empty, "..."]}]
    out = tmp_path / "out"
    assert prepare("caption-archive", "--train", archive, lines(tmp_path / "a.jsonl", texts), "--out", out) == 0
    assert captions(out) == [["a dog", "..."]]
    assert failures(out) == {"no captions in a.jsonl": (1, ["1.jpg"])}


def test_the_vocabulary_is_that_of_training(tmp_path):
    archives = [pack(tmp_path / f"{n}.tar.gz", [("1.jpg", jpeg(n))]) for n in (1, 2)]
    lists = [
        lines(tmp_path / f"{n}.jsonl", [{"image": "1.jpg", "captions": [text]}])
        for n, text in ((1, "a dog"), (2, "a zebra"))
    ]
    for given, expected in (
        (["--train", archives[0], lists[0], "--val", archives[1], lists[1]], "a dog"),
        (["--train", archives[0], lists[0], "--test", archives[1], lists[1]], "a dog"),
        (["--val", archives[0], lists[0], "--test", archives[1], lists[1]], "a dog zebra"),
    ):
        out = tmp_path / f"out{expected[-3:]}{len(given)}{given[3]}"
        assert prepare("caption-archive", *given, "--out", out) == 0
        assert read_info(out).token_ids == token_ids(expected)


def test_caption_archive(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("3.jpg", jpeg(3))])
    texts = [
        {"image": "1.jpg", "captions": ["a dog", "one dog ", ""]},
        {"image": "3.jpg", "captions": []},
        {"image": "4.jpg", "captions": ["absent"]},
    ]
    out = tmp_path / "out"
    assert prepare("caption-archive", "--train", archive, lines(tmp_path / "a.jsonl", texts), "--out", out) == 0
    assert read_info(out).kind == "image_caption" and read_info(out).token_ids == token_ids("a dog", "one dog")
    assert captions(out) == [["a dog", "one dog "]]
    assert failures(out) == {
        "no captions in a.jsonl": (2, ["3.jpg", "2.jpg"]),
        "not in a.tar.gz": (1, ["4.jpg"]),
    }


@pytest.mark.parametrize("line", ["{", "[]", '{"image": "1.jpg"}', '{"image": 1, "captions": []}', "\udcff"])
def test_bad_records_are_named_by_their_line(tmp_path, capsys, line):
    archive = pack(tmp_path / "a.tar.gz", [("1.jpg", jpeg())])
    listed = tmp_path / "a.jsonl"
    listed.write_text('{"image": "0.jpg", "captions": ["x"]}\n' + line + "\n", errors="surrogateescape")
    assert prepare("caption-archive", "--train", archive, listed, "--out", tmp_path / "out") == 2
    assert "a.jsonl: line 2" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- img2dataset


def web_shard(root, number, rows, left_out=(), extra=()):
    """A shard as img2dataset leaves it: (key, status, error, caption) of every row."""
    root.mkdir(exist_ok=True)
    entries = []
    for key, status, _, caption in rows:
        if status == "success" and key not in left_out:
            facts = {"caption": caption, "url": f"http://x/{key}", "key": key, "status": status, "exif": "{}"}
            entries += [(f"{key}.jpg", jpeg(int(key) % 200)), (f"{key}.json", json.dumps(facts).encode())]
            entries += [(f"{key}.txt", caption.encode())]
    pack(root / f"{number:05d}.tar", [*entries, *extra], "w")
    table = {
        "url": [f"http://x/{row[0]}" for row in rows],
        "key": [row[0] for row in rows],
        "status": [row[1] for row in rows],
        "error_message": [row[2] for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), root / f"{number:05d}.parquet")
    done = sum(row[1] == "success" for row in rows)
    written(root / f"{number:05d}_stats.json", {"count": len(rows), "successes": done, "failed_to_download": 1})


def test_img2dataset(tmp_path):
    root = tmp_path / "cc3m"
    first = [
        ("000000000", "success", None, "a red car"),
        ("000000001", "failed_to_download", "HTTP Error 404: Not Found", ""),
        ("000000002", "success", None, "lost"),
        ("000000003", "success", None, "  "),
        ("000000004", "failed_to_resize", "image decoding error", ""),
    ]
    web_shard(root, 0, first, left_out=["000000002"], extra=[("000000009.jpg", jpeg()), ("000000009.txt", b"stray")])
    web_shard(root, 1, [("000010000", "failed_to_download", "HTTP Error 403: Forbidden", "")])
    web_shard(root, 2, [("000020007", "success", None, "a blue boat")])
    (root / "00003.parquet").write_bytes(b"")
    out = tmp_path / "out"
    assert prepare("img2dataset", "--train", root, "--out", out) == 0
    info = read_info(out)
    assert info.kind == "image_caption" and info.token_ids == token_ids("a red car", "a blue boat")
    assert info.splits["train"].samples == 2 and info.splits["train"].shards == 3  # one of ours for one of theirs
    assert [json.loads(s["json"]) for s in samples(out)] == [
        {"captions": ["a red car"], "url": "http://x/000000000"},
        {"captions": ["a blue boat"], "url": "http://x/000020007"},
    ]
    assert [s["jpg"] for s in samples(out)] == [jpeg(0), jpeg(20007 % 200)]
    assert failures(out) == {
        "a success by its table, but not in the tar": (1, ["00000.tar 000000002"]),
        "a table without its tar: the download was not finished": (1, ["00003.parquet"]),
        "failed_to_download: HTTP Error 403: Forbidden": (1, ["00001.tar 000010000"]),
        "failed_to_download: HTTP Error 404: Not Found": (1, ["00000.tar 000000001"]),
        "failed_to_resize: image decoding error": (1, ["00000.tar 000000004"]),
        "in the tar, but not a success by its table": (1, ["00000/000000009"]),
        "the text is empty": (1, ["00000/000000003"]),
    }
    worst = json.loads((out / "summary.json").read_text())["splits"]["train"]["worst_shards"]
    assert worst == [{"shard": 1, "samples": 0, "failed": 1}, {"shard": 0, "samples": 1, "failed": 5}]


def test_img2dataset_without_tables_with_a_broken_tar_and_val(tmp_path, capsys):
    root = tmp_path / "sbu"
    for number in range(10):
        web_shard(root, number, [(f"{10 * number + n:09d}", "success", None, f"thing {n}") for n in range(4)])
        (root / f"{number:05d}.parquet").unlink()
    tar = root / "00004.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    command = ["img2dataset", "--train", root, "--val-fraction", 0.2]
    assert prepare(*command, "--out", tmp_path / "out") == 0
    info = read_info(tmp_path / "out")
    assert info.splits["val"].shards == 2 and info.splits["train"].shards == 8
    assert sum(s.samples for s in info.splits.values()) == 36
    broken = failures(tmp_path / "out") | failures(tmp_path / "out", "val")
    assert [names for _, names in broken.values()] == [["00004.tar"]]
    assert prepare(*command, "--out", tmp_path / "again", workers=2) == 0
    assert content(tmp_path / "again") == content(tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "message"),
    [(b"no parquet", "cannot be read"), (pyarrow.table({"uid": ["1"]}), "no columns key and status")],
)
def test_a_table_that_cannot_be_read_costs_its_shard_alone(tmp_path, table, message):
    root = tmp_path / "in"
    for number in (0, 1):
        web_shard(root, number, [(f"{number:09d}", "success", None, "a thing")])
    if isinstance(table, bytes):
        (root / "00000.parquet").write_bytes(table)
    else:
        pyarrow.parquet.write_table(table, root / "00000.parquet")
    out = tmp_path / "out"
    assert prepare("img2dataset", "--train", root, "--out", out) == 0
    assert len(samples(out)) == 1
    assert [(message in reason, names) for reason, (_, names) in failures(out).items()] == [(True, ["00000.tar"])]


def test_img2dataset_links_and_a_missing_library(tmp_path, capsys, monkeypatch):
    root, other = tmp_path / "in", tmp_path / "other"
    web_shard(root, 0, [("000000000", "success", None, "a thing")])
    web_shard(other, 1, [("000000001", "success", None, "secret")])
    (root / "00001.tar").symlink_to(other / "00001.tar")
    out = tmp_path / "out"
    assert prepare("img2dataset", "--train", root, "--out", out) == 0
    assert captions(out) == [["a thing"]]
    assert failures(out) == {"leads out of the folder by a symbolic link": (1, ["00001.tar"])}
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert prepare("img2dataset", "--train", root, "--out", tmp_path / "without") == 2
    assert "00000.parquet: reading it needs pyarrow: EXTRAS=prepare" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- VQA


def vqa_files(tmp_path, split, asked):
    """asked: (question id, image id, question, answer)."""
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in asked]
    answers = [
        {"question_id": q, "image_id": i, "multiple_choice_answer": a, "answers": [{"answer": a, "answer_id": 1}] * 2}
        for q, i, _, a in reversed(asked)
    ]
    return [
        written(tmp_path / f"v2_OpenEnded_{split}_questions.json", {"questions": questions}),
        written(tmp_path / f"v2_{split}_annotations.json", {"annotations": answers}),
    ]


def test_vqa(tmp_path):
    images = folder(tmp_path / "train2014", [(f"COCO_train2014_{n:012d}.jpg", jpeg(n)) for n in (1, 2)])
    train = [
        (10, 1, "Is it red?", "yes"),
        (11, 1, "How many?", "2"),
        (20, 2, "Is it blue?", "yes"),
        (21, 2, "Which?", "left"),
        (22, 3, "Where?", "2"),
    ]
    val = [(30, 2, "Is it?", "yes"), (31, 2, "Who?", "nobody")]
    given = [
        *("--train", *vqa_files(tmp_path, "train", train), images),
        *("--val", *vqa_files(tmp_path, "val", val), images),
    ]
    out = tmp_path / "out"
    assert prepare("vqa", *given, "--answers", 2, "--no-shuffle", "--out", out) == 0
    info = read_info(out)
    assert info.kind == "image_question" and info.classes == ("2", "yes")
    found = [(s["cls"], s["jpg"], json.loads(s["json"])["question"]) for s in samples(out)]
    assert found == [(b"1", jpeg(1), "Is it red?"), (b"0", jpeg(1), "How many?"), (b"1", jpeg(2), "Is it blue?")]
    assert json.loads(samples(out)[0]["json"])["answers"] == ["yes", "yes"]
    assert failures(out) == {
        "its answer is none of the 2 most frequent": (1, ["question_21"]),
        "its image is not in train2014": (1, ["question_22"]),
    }
    # Evaluation keeps what cannot be answered right.
    assert [s.get("cls") for s in samples(out, "val")] == [b"1", None] and not failures(out, "val")


def test_vqa_without_an_answer(tmp_path, capsys):
    questions, _ = vqa_files(tmp_path, "train", [(1, 1, "What?", "x")])
    answers = written(tmp_path / "a.json", {"annotations": []})
    images = folder(tmp_path / "i", [("1.jpg", jpeg())])
    assert prepare("vqa", "--train", questions, answers, images, "--out", tmp_path / "out") == 2
    assert "no answer to question 1" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- real files


@pytest.mark.shared
def test_real_flowers(tmp_path):
    flowers = REAL / "flowers"
    options = ["--train", flowers / "train.tar.gz", "--val", flowers / "val.tar.gz", "--resize", 64]
    assert prepare("class-archive", *options, "--classes", flowers / "classes.json", "--out", tmp_path / "out") == 0
    info = read_info(tmp_path / "out")
    assert {name: split.samples for name, split in info.splits.items()} == {"train": 900, "val": 200}
    assert info.classes == tuple(json.loads((flowers / "classes.json").read_text())) and not failures(tmp_path / "out")
    assert decode_image(samples(tmp_path / "out", "val")[0]["jpg"]).shape == (64, 64, 3)


# ---------------------------------------------------------------------------------------- which folder is a class


def classes_of(tmp_path: Path, *names: str, expect: int = 0, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    source = folder(tmp_path / "in", [(name, jpeg(10 * number)) for number, name in enumerate(names)])
    assert prepare("class-folders", "--train", source, *more, "--out", tmp_path / "out") == expect
    return read_info(tmp_path / "out").classes if not expect else ()


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("n1/images/a.jpg", "n2/images/b.jpg"), ("n1", "n2")),
        (("n1/images/raw/a.jpg", "n2/images/raw/b.jpg"), ("n1", "n2")),
        (("set/cat/a.jpg", "set/dog/b.jpg"), ("cat", "dog")),
        (("cat/a.jpg", "cat/b.jpg"), ("cat",)),
        (("cat/a.jpg", "dog/b.jpg", ".ipynb_checkpoints/c.jpg", "cat/.ipynb_checkpoints/d.jpg"), ("cat", "dog")),
        (
            ("cat/a.jpg", "dog/b.jpg", "__MACOSX/cat/c.jpg", "@eaDir/d.jpg", ".hidden/e.jpg", ".cache/x/f.jpg"),
            ("cat", "dog"),
        ),
        (("cafe\u0301/a.jpg", "dog/b.jpg"), ("caf\u00e9", "dog")),
    ],
)
def test_the_folder_that_is_a_class(names, classes, tmp_path):
    assert classes_of(tmp_path, *names) == classes


@pytest.mark.parametrize(
    "names", [("Cat/a.jpg", "cat/b.jpg"), ("a  cat/a.jpg", "a cat/b.jpg"), ("cat/a.jpg", "\uff23\uff21\uff34/b.jpg")]
)
def test_classes_that_are_one_to_the_model_are_refused(names, tmp_path, capsys):
    classes_of(tmp_path, *names, expect=2)
    assert "are one to the model, which sees no letter case" in capsys.readouterr().err
    first = names[0].partition("/")[0]
    assert len(classes_of(tmp_path, *names, more=("--name-map", f"{first}=lion"))) == 2


def test_two_spellings_of_one_letter_are_one_class_and_one_label(tmp_path):
    train = folder(tmp_path / "train", [("caf\u00e9/a.jpg", jpeg()), ("dog/b.jpg", jpeg(9))])
    val = folder(tmp_path / "val", [("cafe\u0301/c.jpg", jpeg()), ("dog/d.jpg", jpeg(9))])
    out = tmp_path / "out"
    assert prepare("class-folders", "--train", train, "--val", val, "--out", out) == 0
    assert read_info(out).classes == ("caf\u00e9", "dog")
    assert sorted(sample["cls"] for sample in samples(out, "val")) == [b"0", b"1"]


def test_a_class_of_val_that_train_has_not_is_refused(tmp_path, capsys):
    train = folder(tmp_path / "train", [("cat/a.jpg", jpeg()), ("dog/b.jpg", jpeg(9))])
    val = folder(tmp_path / "val", [("images/c.jpg", jpeg())])
    assert prepare("class-folders", "--train", train, "--val", val, "--out", tmp_path / "out") == 2
    assert "val has class 'images', which train has not (cat, dog)" in capsys.readouterr().err
