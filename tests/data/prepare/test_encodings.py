"""Lists and tables as people's programs save them: byte order marks, UTF-16, Latin-1, CRLF."""

from __future__ import annotations

import json

import pytest

from data.prepare.annotations import read_json, text_lines
from data.prepare.containers import Limits
from data.prepare.tables import table
from data.shards import DatasetError, ShardSet, read_info, write_shards
from tests.helpers.public import captions, clip, content, folder, jpeg, prepare, samples


def saved(path, text, encoding):
    """As Excel and Notepad do: CRLF, and a mark at the start."""
    path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    return str(path)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_of_every_layout_with_a_byte_order_mark(tmp_path, encoding):
    images = folder(tmp_path / "images", [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])
    rows = saved(tmp_path / "a.jsonl", '{"image": "0.jpg", "captions": ["a café"]}\n', encoding)
    assert prepare("caption-archive", "--train", images, rows, "--out", tmp_path / "archive") == 0
    assert captions(tmp_path / "archive") == [["a café"]]

    tokens = saved(tmp_path / "a.token", "0.jpg#0\tA dog .\n1.jpg#0\tA cat .\n", encoding)
    train = saved(tmp_path / "train.txt", "0.jpg\n", encoding)
    options = ["--tokens", tokens, "--images", images, "--train-list", train]
    assert prepare("flickr", *options, "--out", tmp_path / "flickr") == 0
    assert captions(tmp_path / "flickr") == [["A dog ."]]

    clips = folder(tmp_path / "clips", [("abc.mp4", clip(0)), ("zumba/1.mp4", clip(50))])
    kinetics = saved(tmp_path / "k.csv", "label,youtube_id,time_start,time_end\nzumba,abc,2,12\n", encoding)
    assert prepare("kinetics", "--train", clips, kinetics, "--out", tmp_path / "kinetics") == 0
    assert len(samples(tmp_path / "kinetics")) == 1
    moments = saved(tmp_path / "m.csv", "zumba/1.mp4,zumba,3,1\n", encoding)
    assert prepare("moments", "--train", clips, moments, "--out", tmp_path / "moments") == 0
    assert read_info(tmp_path / "moments").classes == ("zumba",) and len(samples(tmp_path / "moments")) == 1

    text = saved(tmp_path / "text.txt", "Hello world.\nSecond line.\n", encoding)
    unit = ["--unit", "line", "--val-fraction", 0]
    assert prepare("text", "--input", text, *unit, "--out", tmp_path / "text") == 0
    assert [sample["txt"] for sample in samples(tmp_path / "text")] == [b"Hello world.", b"Second line."]

    named = folder(tmp_path / "named", [("dog/0.jpg", jpeg(0))])
    classes = saved(tmp_path / "classes.json", '["dog", "café"]', encoding)
    assert prepare("class-folders", "--train", named, "--classes", classes, "--out", tmp_path / "named_out") == 0
    assert read_info(tmp_path / "named_out").classes == ("dog", "café")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_of_shards_and_dataset_json_with_a_byte_order_mark(tmp_path, encoding):
    out = tmp_path / "set"
    write_shards(out, "train", [{"__key__": "a", "txt": "a"}])
    for name in ("train.shards.json", "dataset.json"):
        if name == "dataset.json":
            text = json.dumps({"kind": "text", "classes": [], "token_ids": [49407], "splits": {}, "version": 1})
        else:
            text = (out / name).read_text(encoding="utf-8")
        saved(out / name, text, encoding)
    saved(out / "list.txt", "# shards\ntrain-000000.tar\n", encoding)
    assert read_info(out).kind == "text" and ShardSet.open(out, "train").sizes == (1,)
    assert ShardSet.from_urls([f"@{out}/list.txt"]).sizes == (1,)


def test_bytes_that_are_not_utf8_are_told_with_their_place_and_the_remedy(tmp_path, capsys):
    images = folder(tmp_path / "images", [("0.jpg", jpeg(0))])
    rows = saved(tmp_path / "a.jsonl", '{"image": "0.jpg",\n"captions": ["café"]}\n', "latin-1")
    out = tmp_path / "out"
    assert prepare("caption-archive", "--train", images, rows, "--out", out) == 2
    remedy = "save the file as UTF-8, from Latin-1 by `iconv -f latin1 -t utf-8 OLD > NEW`\n"
    assert capsys.readouterr().err == f"error: {rows}: line 2, byte 37 (0xe9) is not UTF-8: {remedy}"
    with pytest.raises(DatasetError, match=r"byte 37 .0xe9. is not UTF-8"):
        read_json(tmp_path / "a.jsonl", Limits())
    (tmp_path / "dataset.json").write_bytes(b'{"kind": "caf\xe9"}')
    with pytest.raises(DatasetError, match=r"dataset.json: line 1, byte 13 .0xe9. is not UTF-8: save the file"):
        read_info(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.tar\n")
    with pytest.raises(DatasetError, match=r"@.*list.txt: line 1, byte 3 .0xe9. is not UTF-8: save the file"):
        ShardSet.from_urls([f"@{tmp_path}/list.txt"])
    assert content(out) == {}


def test_a_cell_of_two_lines_keeps_its_words_apart(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'name,text\r\n1,"a red\r\nball"\r\n2,plain\r\n')
    assert [row["text"].split() for _, row in table(path, Limits(), ("text",))] == [["a", "red", "ball"], ["plain"]]


def test_lines_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("data.prepare.annotations.BLOCK_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\n\nlonger line\nend".encode("utf-8-sig"))
    assert list(text_lines(path, 100)) == ["é", "", "longer line", "end"]
    with pytest.raises(DatasetError, match="more than 10 bytes"):
        list(text_lines(path, 10))
