"""data.inspect lint and stats: every kind of damage is named with its place, sound sets are clean."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.decode.image import encode_png
from data.decode.video import encode_mp4
from data.inspect.__main__ import main
from data.inspect.problems import Problem
from data.inspect.statistics import summary
from data.shards import DatasetInfo, SplitInfo, write_info, write_shard, write_shards
from data.shards.__main__ import main as index_shards
from data.text.tokenizer import END_OF_TEXT, Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


def picture(shade, width=8, height=6):
    return encode_png(np.full((height, width, 3), shade, np.uint8))


def captioned(first, count):
    return [
        {"__key__": f"k{i}", "png": picture(i), "json": {"captions": ["a red dog", f"dog {i}"]}}
        for i in range(first, first + count)
    ]


def write(folder, tokenizer, kind, splits, classes=(), texts=()):
    """A complete data set of two samples a shard."""
    counts = {}
    for split, samples in splits.items():
        paths = write_shards(folder, split, samples, samples_per_shard=2)
        counts[split] = SplitInfo(len(samples), len(paths))
    ids = {END_OF_TEXT}.union(*(tokenizer.encode(text) for text in (*classes, *texts)))
    write_info(folder, DatasetInfo(kind=kind, classes=tuple(classes), token_ids=tuple(sorted(ids)), splits=counts))
    return folder


@pytest.fixture
def pictures(tmp_path, tokenizer):
    """train: k0 k1 | k2 k3, val: k4"""
    folder = tmp_path / "pictures"
    texts = ["a red dog 0 1 2 3"]
    return write(folder, tokenizer, "image_caption", {"train": captioned(0, 4), "val": captioned(4, 1)}, texts=texts)


def lint(capsys, *arguments):
    """(exit code, lines of stdout, stderr) without a pool of processes."""
    code = main(["lint", *map(str, arguments), "--workers", "0"])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def edit_info(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path, change, keep_index=False):
    """The tar again, with (name, content) members changed."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, content in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if not keep_index:
        path.with_name(path.name + ".index.json").unlink()


def replaced(name, content):
    return lambda members: [(n, content if n == name else c) for n, c in members]


# ---------------------------------------------------------------------------------------------------------- clean


def test_a_sound_folder_is_clean_and_counted(capsys, pictures, tmp_path):
    report = tmp_path / "report.json"
    code, lines, _ = lint(capsys, pictures, "--json", report)
    assert (code, lines) == (0, ["5 samples in 3 shards: 0 errors, 0 warnings"])
    found = json.loads(report.read_text())
    assert (found["samples"], found["shards"], found["errors"], found["problems"]) == (5, 3, 0, [])


def test_one_split_alone(capsys, pictures):
    (pictures / "train-000000.tar").write_bytes(b"")
    assert lint(capsys, pictures, "--split", "val")[:2] == (0, ["1 samples in 1 shards: 0 errors, 0 warnings"])


@pytest.mark.parametrize(
    ("kind", "sample"),
    [
        ("video_class", {"mp4": encode_mp4(np.zeros((5, 16, 16, 3), np.uint8), fps=5), "cls": 0}),
        ("text_class", {"txt": "dog", "cls": 1}),
        ("text", {"txt": "red dog"}),
    ],
)
def test_other_kinds_are_clean(capsys, tmp_path, tokenizer, kind, sample):
    classes = ("dog", "red") if kind.endswith("class") else ()
    folder = write(tmp_path / kind, tokenizer, kind, {"train": [{"__key__": "a", **sample}]}, classes, ("red dog",))
    assert lint(capsys, folder)[0] == 0


def test_a_folder_with_signs_of_a_pattern_in_its_name(capsys, tmp_path, tokenizer):
    folder = write(tmp_path / "s [ab]*", tokenizer, "text", {"train": [{"__key__": "a", "txt": "a"}]}, texts=["a"])
    clean = [f"{folder}", f"{folder}/train-000000.tar", f"{folder}/*.tar", f"{folder}/train-{{000000..000000}}.tar"]
    for name in clean:
        assert lint(capsys, name)[:2] == (0, ["1 samples in 1 shards: 0 errors, 0 warnings"])
    (folder / "dataset.json").unlink()
    code, _, error = lint(capsys, folder)
    advised = error.partition("give '")[2].rpartition("'")[0]
    assert code == 2 and lint(capsys, advised)[0] == 0


def test_shards_of_other_makers(capsys, tmp_path):
    for name in "abc":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for member, content in (
                (f"{name}.jpg", b"no image" if name == "b" else picture(3)),
                (f"{name}.txt", b"dog"),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert lint(capsys, tmp_path / "{a,c}.tar")[0] == 0
    code, lines, _ = lint(capsys, tmp_path / "*.tar")
    assert code == 1 and len(lines) == 2
    assert "b.tar byte 0 key 'b': image of 8 bytes" in lines[0]


# --------------------------------------------------------------------------------------------------------- damage

SHARD = "train-000001.tar"  # k2 at byte 0, k3 at byte 2048: two headers and two short members each


def cut(path):
    path.write_bytes(path.read_bytes()[:2600])


def claim(path):
    """A header that claims 2 GiB."""
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo.frombuf(bytes(data[2048:2560]), "utf-8", "strict")
    header.size = 2 << 30
    data[2048:2560] = header.tobuf(tarfile.USTAR_FORMAT)[:512]
    path.write_bytes(data)


def claim_unindexed(path):
    claim(path)
    path.with_name(path.name + ".index.json").unlink()


def break_header(path):
    data = bytearray(path.read_bytes())
    data[2048 + 100 : 2048 + 110] = b"\xff" * 10
    path.write_bytes(data)


def no_index_json(path):
    path.with_name(path.name + ".index.json").write_text("{oops")


def shift_index(path):
    index = path.with_name(path.name + ".index.json")
    content = json.loads(index.read_text())
    content["samples"][1]["offset"] += 512
    index.write_text(json.dumps(content))


def shorten_index(path):
    index = path.with_name(path.name + ".index.json")
    content = json.loads(index.read_text())
    del content["samples"][0]
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut, "train-000001.tar: cut off or damaged at byte 2048 of 2600"),
        (cut, "train-000001.tar.index.json is not used (made for a tar of 10240 bytes, found 2600)"),
        (lambda path: path.write_bytes(b""), "train-000001.tar: no sample can be read; "),
        (lambda path: path.write_text("<!doctype html><p>not found" * 99), "train-000001.tar: no sample can be read"),
        (claim, "train-000001.tar byte 2048 key 'k3': member 'k3.json' of 2147483648 bytes"),
        (claim_unindexed, "train-000001.tar: cut off or damaged at byte 2048"),
        (break_header, "train-000001.tar byte 2048 key 'k3': tar header at byte 0 of the sample: bad checksum"),
        (lambda p: rewrite(p, replaced("k3.png", b"GIF89a")), "byte 2048 key 'k3': image of 6 bytes"),
        (lambda p: rewrite(p, replaced("k3.json", b'{"cap')), "byte 2048 key 'k3': JSON"),
        (lambda p: rewrite(p, replaced("k3.json", b'{"captions": []}')), "byte 2048 key 'k3': no caption"),
        (
            lambda p: rewrite(p, replaced("k3.json", b'{"captions": ["a cat"]}')),
            "key 'k3': dataset.json lacks token_ids",
        ),
        (
            lambda p: rewrite(p, replaced("k3.json", b'{"captions": ["&nbsp;"]}')),
            "key 'k3': no caption: none of the 1 in json has a word",
        ),
        (lambda p: rewrite(p, lambda m: [*m, *m[:2]]), "byte 4096 key 'k2': the key comes twice in the split"),
        (no_index_json, "train-000001.tar.index.json is not used"),
        (shift_index, "train-000001.tar.index.json sample 1: key 'k3'"),
        (shorten_index, "train-000001.tar.index.json has 1 samples, the tar 2"),
    ],
)
def test_damage_is_named_with_its_place(capsys, pictures, damage, line):
    damage(pictures / SHARD)
    code, lines, _ = lint(capsys, pictures)
    assert code == 1
    assert any(line in found and found.startswith("error: ") for found in lines), lines


@pytest.mark.parametrize(
    ("kind", "member", "content", "reason"),
    [
        ("video_class", "cls", b"2", "class 2 of 2"),
        ("video_class", "cls", b"dog", "no class index"),
        ("video_class", "mp4", b"\0" * 900, "video of 900 bytes"),
        ("text", "txt", b"\xff\xfe", "text is not valid UTF-8"),
        ("text", "txt", b" \n", "the text is empty"),
        ("text", "txt", b"&nbsp;", "the text '&nbsp;' has no word"),
        ("text", "txt", "\u200b".encode(), r"the text '\u200b' has no word"),
    ],
)
def test_bad_members_of_other_kinds(capsys, tmp_path, tokenizer, kind, member, content, reason):
    sound = {"mp4": encode_mp4(np.zeros((4, 16, 16, 3), np.uint8), fps=5), "cls": 0} if kind == "video_class" else {}
    classes = ("red", "dog") if sound else ()
    folder = write(tmp_path / "set", tokenizer, kind, {"train": [{"__key__": "a", **sound, member: content}]}, classes)
    code, lines, _ = lint(capsys, folder)
    assert code == 1
    assert f"train-000000.tar byte 0 key 'a': {reason}" in lines[0]


def test_a_key_of_another_shard(capsys, pictures):
    rewrite(pictures / SHARD, lambda members: [(name.replace("k3", "k0"), content) for name, content in members])
    code, lines, _ = lint(capsys, pictures)
    assert code == 1
    assert (
        "train-000001.tar byte 2048 key 'k0': the key comes twice in the split, also in train-000000.tar at byte 0"
        in lines[0]
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"splits": {"train": {"samples": 5, "shards": 2}, "val": {"samples": 1, "shards": 1}}}, "found 4 in 2"),
        ({"splits": {"train": {"samples": 4, "shards": 2}}}, "split val is not in it"),
        ({"token_ids": [5, 4, END_OF_TEXT]}, "token_ids are not sorted"),
        ({"token_ids": []}, f"lacks token_ids of the class names: {END_OF_TEXT}"),
    ],
)
def test_dataset_json_that_says_otherwise(capsys, pictures, changes, reason):
    edit_info(pictures, **changes)
    code, lines, _ = lint(capsys, pictures)
    assert code == 1
    assert any("dataset.json: " in line and reason in line for line in lines), lines


def test_class_names_that_are_one_to_the_model(capsys, tmp_path, tokenizer):
    long = "a " * 40
    names = ("cat", "Cat ", "dog", f"{long}cat", f"{long}dog", "\N{FULLWIDTH LATIN SMALL LETTER D}og", "CAT")
    samples = [{"__key__": f"{n}", "png": picture(n), "cls": n} for n in range(len(names))]
    code, lines, _ = lint(capsys, write(tmp_path / "set", tokenizer, "image_class", {"train": samples}, names))
    found = [line.partition("dataset.json: the class names ")[2] for line in lines[:-1]]
    cut = " are one to the model at max_text=32, which a task has by default: give it more, or rename one"
    whole = " are one to the model, which sees no letter case and no unusual spaces: put the classes together, or rename one"
    assert code == 1 and lines[-1] == "7 samples in 4 shards: 4 errors, 0 warnings"
    assert found == [
        f"'cat' and 'Cat '{whole}",
        f"'{long}cat' and '{long}dog'{cut}",
        f"'dog' and '\N{FULLWIDTH LATIN SMALL LETTER D}og'{whole}",
        f"'cat' and 'CAT'{whole}",
    ]


def test_words_of_evaluation_need_not_be_in_dataset_json_and_those_of_training_must(capsys, tmp_path, tokenizer):
    splits = {"train": captioned(0, 2), "val": captioned(7, 2)}
    sound = write(tmp_path / "sound", tokenizer, "image_caption", splits, texts=["a red dog 0 1"])
    assert lint(capsys, sound)[:2] == (0, ["4 samples in 2 shards: 0 errors, 0 warnings"])
    # As earlier versions had it: words of evaluation are words of the vocabulary.
    earlier = write(tmp_path / "earlier", tokenizer, "image_caption", splits, texts=["a red dog 0 1 7 8"])
    code, lines, _ = lint(capsys, earlier)
    assert code == 0 and "2 token_ids are in no text of training" in lines[0]
    lacking = write(tmp_path / "lacking", tokenizer, "image_caption", splits, texts=["a red dog 0"])
    code, lines, _ = lint(capsys, lacking)
    assert code == 1 and "train-000000.tar" in lines[0] and "dataset.json lacks token_ids" in lines[0]


@pytest.mark.parametrize("extra", ["", "&nbsp;", "\u200b", None])
def test_one_caption_without_a_word_among_others_is_no_fault(capsys, pictures, extra):
    captions = json.dumps({"captions": [extra, "a red dog"]}).encode()
    rewrite(pictures / SHARD, replaced("k2.json", captions))
    # The other captions of the picture are gone, so a token may be unused.
    assert lint(capsys, pictures)[0] == 0


def test_a_split_without_its_shards(capsys, pictures):
    (pictures / "val-000000.tar").unlink()
    code, lines, _ = lint(capsys, pictures)
    assert code == 1 and any("split val has 1 samples in 1 shards; found 0 in 0" in line for line in lines)


def test_a_list_of_shards_that_is_out_of_date(capsys, pictures):
    path = pictures / "train.shards.json"
    path.write_text(
        path.read_text().replace('"samples": 2', '"samples": 3', 1).replace('"samples":2', '"samples":3', 1)
    )
    code, lines, _ = lint(capsys, pictures)
    assert code == 1 and "train.shards.json: train-000000.tar has 3 samples in this list; found 2" in lines[0]
    path.write_text("{}")
    assert "train.shards.json: not a list of shards" in lint(capsys, pictures)[1][0]


def test_a_shard_without_a_sample_is_no_error(capsys, pictures):
    """As data.prepare leaves one."""
    write_shard(pictures / "train-000002.tar", [])
    edit_info(pictures, splits={"train": {"samples": 4, "shards": 3}, "val": {"samples": 1, "shards": 1}})
    assert index_shards([str(pictures)]) == 0
    capsys.readouterr()
    code, lines, _ = lint(capsys, pictures)
    assert (code, lines) == (
        0,
        [
            f"warning: {pictures}/train-000002.tar: a tar without a sample; nothing reads it, it may stay",
            "5 samples in 4 shards: 0 errors, 1 warnings",
        ],
    )


def test_advice_about_an_empty_file_leads_to_a_clean_folder(capsys, pictures):
    shard, lists = pictures / SHARD, pictures / "train.shards.json"
    shard.write_bytes(b"")
    code, lines, _ = lint(capsys, pictures)
    assert code == 1 and "the file is empty; make the shard again, or remove it and make the list anew" in lines[0]
    assert "found 2 in 2; prepare the data set again, or write the numbers that are found there" in lines[1]
    assert lines[2].endswith("remove the list, or make it anew with `python -m data.shards`")
    assert index_shards([str(pictures)]) == 1
    capsys.readouterr()
    code, lines, _ = lint(capsys, pictures)
    assert code == 1 and not any(lists.name in line for line in lines)
    shard.unlink()
    assert index_shards([str(pictures)]) == 0
    edit_info(pictures, splits={"train": {"samples": 2, "shards": 1}, "val": {"samples": 1, "shards": 1}})
    capsys.readouterr()
    code, lines, _ = lint(capsys, pictures)
    assert code == 0 and lines[-1].startswith("3 samples in 2 shards: 0 errors")


def test_splits_that_share_a_picture_and_unused_tokens_are_warnings(capsys, tmp_path, tokenizer):
    shared = [{**captioned(2, 1)[0], "__key__": "other"}]
    splits = {"train": captioned(0, 4), "val": shared}
    folder = write(tmp_path / "s", tokenizer, "image_caption", splits, texts=["a red dog 0 1 2 3 cat"])
    code, lines, _ = lint(capsys, folder)
    assert code == 0
    assert "1 token_ids are in no text of training" in lines[0] and "'cat '" in lines[0]
    assert "1 samples of split val have the content of samples of split train" in lines[1]
    assert lines[1].endswith("val-000000.tar byte 0 key 'other'")


def test_lines_have_a_limit_and_counts_have_not(capsys, pictures, tmp_path):
    for shard in ("train-000000.tar", SHARD):
        rewrite(pictures / shard, lambda members: [(n, b"x" if n.endswith("png") else c) for n, c in members])
    code, lines, _ = lint(capsys, pictures, "--max-problems", 1, "--json", tmp_path / "r.json")
    assert code == 1 and len(lines) == 3
    assert lines[1:] == ["and 3 more (--max-problems)", "5 samples in 3 shards: 4 errors, 0 warnings"]
    assert len(json.loads((tmp_path / "r.json").read_text())["problems"]) == 1


def test_folders_that_cannot_be_read(capsys, pictures, tmp_path):
    assert lint(capsys, tmp_path / "nowhere") == (2, [], f"error: {tmp_path}/nowhere: no such folder or shard\n")
    assert lint(capsys, "a{b") == (2, [], "error: a{b: unbalanced braces\n")
    assert lint(capsys, "{0..9999999}")[2] == "error: {0..9999999}: expands to 10000000 names, more than 4000000\n"
    assert lint(capsys, pictures, "--split", "test")[0] == 2
    (pictures / "dataset.json").write_text('{"kind": 3}')
    code, _, err = lint(capsys, pictures)
    assert code == 2 and "dataset.json" in err
    (pictures / "dataset.json").unlink()
    code, _, err = lint(capsys, pictures)
    assert code == 2 and "has shards and no dataset.json" in err


def test_a_line_of_a_problem_steers_no_terminal():
    line = str(Problem("error", "a.tar", "\x1b[2Jgone\nerror", 512, "k\x07"))
    assert line.isprintable() and line.startswith("error: a.tar byte 512 key 'k\\x07': ")


# ---------------------------------------------------------------------------------------------------- statistics


def test_statistics_of_pictures(capsys, pictures, tmp_path):
    assert main(["stats", str(pictures), "--workers", "0", "--json", str(tmp_path / "s.json")]) == 0
    text = capsys.readouterr().out
    assert "image_caption" in text and "8/8/8/8" in text
    train = json.loads((tmp_path / "s.json").read_text())["splits"]["train"]
    assert (train["samples"], train["shards"], train["unreadable"]) == (4, 2, 0)
    assert train["height"]["max"] == 6
    assert train["texts_per_sample"]["median"] == 2
    # Eight captions: four of three tokens, four of two.
    assert train["tokens_per_text"] == {"min": 2, "median": 2, "p95": 3, "max": 3, "mean": 2.5}
    assert train["mean_colour"] == [1.5, 1.5, 1.5]  # shades 0, 1, 2 and 3
    assert train["unknown_tokens"] == {}
    assert train["longest_words"][:2] == ["red", "dog"]


def test_questions_are_looked_at(tmp_path, tokenizer, capsys):
    """Of three samples one has no question, and one a class that is not there."""
    about = [{"question": "red ?", "answers": ["red"]}, {"answers": ["red"]}, {"question": "red ?", "answers": ["red"]}]
    pixels = encode_png(np.zeros((4, 4, 3), np.uint8))
    samples = [
        {"__key__": f"k{i}", "png": pixels, "json": json.dumps(one), "cls": 7 * (i == 2)} for i, one in enumerate(about)
    ]
    folder = write(tmp_path / "vqa", tokenizer, "image_question", {"train": samples}, ("red", "dog"))
    assert main(["lint", str(folder), "--workers", "0"]) == 1
    said = capsys.readouterr().out
    assert "no question" in said and "class 7 of 2" in said


def test_statistics_of_clips_and_classes(tmp_path, tokenizer):
    clip = encode_mp4(np.zeros((10, 16, 32, 3), np.uint8), fps=5)
    samples = [{"__key__": f"k{i}", "mp4": clip if i else b"?", "cls": 1} for i in range(3)]
    folder = write(tmp_path / "clips", tokenizer, "video_class", {"train": samples}, ("red", "dog"))
    assert main(["stats", str(folder), "--workers", "0", "--json", str(tmp_path / "s.json")]) == 0
    train = json.loads((tmp_path / "s.json").read_text())["splits"]["train"]
    assert (train["samples"], train["unreadable"]) == (3, 1)
    assert train["classes"] == {"red": 0, "dog": 2}
    assert (train["seconds"]["median"], train["frames"]["max"], train["fps"]["max"]) == (2.0, 10, 5.0)
    assert train["codecs"] == {"h264": 2}


def test_summary_of_counted_numbers():
    # 1 1 1 2 9: the third of five is 1; 95 % of five is the fifth.
    assert summary(Counter({1: 3, 2: 1, 9: 1})) == {"min": 1, "median": 1, "p95": 9, "max": 9, "mean": 2.8}


def test_jpegs_too(capsys, tmp_path, tokenizer):
    """Extensions of images are those that training takes."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "JPEG")
    samples = [{"__key__": "a", "jpg": buffer.getvalue(), "cls": 0}]
    folder = write(tmp_path / "jpegs", tokenizer, "image_class", {"train": samples}, ("dog",))
    assert lint(capsys, folder)[0] == 0


def test_tars_put_behind_one_another_are_read_and_told(capsys, pictures):
    """Training reads them, other programs stop at the first end mark."""
    (pictures / SHARD).write_bytes((pictures / SHARD).read_bytes() * 2)
    code, lines, _ = lint(capsys, pictures)
    size = (pictures / SHARD).stat().st_size // 2
    assert code == 1
    assert any(
        f"{size} bytes follow the end mark at byte" in line and "unpack the tars and pack one" in line for line in lines
    ), lines


def test_an_index_that_has_no_sample_does_not_make_a_tar_empty(capsys, pictures):
    index = pictures / f"{SHARD}.index.json"
    size = (pictures / SHARD).stat().st_size
    index.write_text(json.dumps({"version": 1, "tar_bytes": size, "samples": []}))
    (pictures / "train.shards.json").unlink()
    code, lines, _ = lint(capsys, pictures / SHARD)
    assert code == 1 and any(f"{index.name} has none, the tar" in line for line in lines), lines
