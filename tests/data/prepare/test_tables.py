"""The layout `table`: any CSV, TSV or parquet with a column of files."""

from __future__ import annotations

import builtins

import pyarrow
import pyarrow.parquet
import pytest

from data.shards import read_info
from tests.helpers.public import captions, clip, failures, folder, jpeg, pack, prepare, samples, written


@pytest.fixture
def pictures(tmp_path):
    return folder(tmp_path / "in", [(f"images/{n}.jpg", jpeg(n)) for n in range(4)])


def test_captions_of_rows_and_columns(tmp_path, pictures, capsys):
    rows = [
        "Filepath,id,caption_1,caption_2",
        'images/1.jpg,a,"a dog, running",',
        "images/0.jpg,b,a cat,a kitten",
        "./images/1.jpg,c,a hound,",
        "images/9.jpg,d,a horse,",
        "images/2.jpg,e,,&nbsp;",
        ",f,nothing,",
    ]
    table = written(tmp_path / "in" / "train.csv", "\n".join(rows))
    assert prepare("table", "--train", table, "--out", tmp_path / "out") == 0
    assert captions(tmp_path / "out") == [["a cat", "a kitten"], ["a dog, running", "a hound"]]
    assert read_info(tmp_path / "out").kind == "image_caption"
    assert failures(tmp_path / "out") == {
        "names no file": (1, ["line 7"]),
        "no captions in train.csv": (1, ["images/2.jpg"]),
        "not in in": (1, ["images/9.jpg"]),
    }
    assert f"{table}: files in column Filepath, captions in caption_1, caption_2\n" in capsys.readouterr().out


def test_classes_by_named_columns_of_a_tsv_and_an_archive(tmp_path):
    archive = pack(tmp_path / "images.tar.gz", [(f"{n}.jpg", jpeg(n)) for n in range(4)])
    rows = "what\twhere\tcaption\n dog \t0.jpg\tx\ncat\t1.jpg\tx\n\t2.jpg\tx\n"
    train = written(tmp_path / "train.tsv", rows)
    val = written(tmp_path / "val.tsv", "where\twhat\n3.jpg\tdog\n")
    options = ["--file-column", "where", "--class-column", "what", "--root", archive, "--name-map", "cat=small cat"]
    assert prepare("table", "--train", train, "--val", val, *options, "--no-shuffle", "--out", tmp_path / "out") == 0
    info = read_info(tmp_path / "out")
    assert info.kind == "image_class" and info.classes == ("small cat", "dog")
    assert [(s["cls"], s["jpg"]) for s in samples(tmp_path / "out")] == [(b"1", jpeg(0)), (b"0", jpeg(1))]
    assert [(s["cls"], s["jpg"]) for s in samples(tmp_path / "out", "val")] == [(b"1", jpeg(3))]
    assert failures(tmp_path / "out") == {"no class in train.tsv": (1, ["2.jpg"])}


def test_clips_of_a_parquet_table(tmp_path):
    source = folder(tmp_path / "in", [("a.mp4", clip(0)), ("b.mp4", clip(50))])
    columns = {"video": ["a.mp4", "b.mp4", None], "captions": [["one", None], ["two", "three"], ["four"]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "in" / "a.parquet")
    assert prepare("table", "--train", f"{source}/a.parquet", "--out", tmp_path / "captions") == 0
    assert captions(tmp_path / "captions") == [["one"], ["two", "three"]]
    assert failures(tmp_path / "captions") == {"names no file": (1, ["row 3"])}
    pyarrow.parquet.write_table(pyarrow.table({"path": ["b.mp4"], "label": [3]}), tmp_path / "in" / "b.parquet")
    assert prepare("table", "--train", f"{source}/b.parquet", "--fps", 2, "--out", tmp_path / "classes") == 0
    info = read_info(tmp_path / "classes")
    assert (info.kind, info.classes, info.splits["train"].samples) == ("video_class", ("3",), 1)


def test_a_parquet_table_without_pyarrow(tmp_path, monkeypatch, capsys):
    written(tmp_path / "a.parquet", "")
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert prepare("table", "--train", tmp_path / "a.parquet", "--out", tmp_path / "out") == 2
    assert "a.parquet: reading it needs pyarrow: EXTRAS=prepare" in capsys.readouterr().err


def test_absolute_names_below_the_root_and_classes_in_a_given_order(tmp_path, pictures):
    rows = f"image,label\n{pictures}/images/0.jpg,dog\nimages/1.jpg,bird\nimages/2.jpg,cow\n"
    table, classes = written(tmp_path / "t.csv", rows), written(tmp_path / "classes.json", ["dog", "cat", "bird"])
    options = ["--root", pictures, "--classes", classes]
    assert prepare("table", "--train", table, *options, "--out", tmp_path / "out") == 0
    assert [(s["cls"], s["jpg"]) for s in samples(tmp_path / "out")] == [(b"0", jpeg(0)), (b"2", jpeg(1))]
    assert failures(tmp_path / "out") == {"its class is not in the list of classes": (1, ["images/2.jpg"])}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("image,caption\n../secret.jpg,x\n", [], "'../secret.jpg' has a name that leads out of the folder; refused"),
        ("image,caption\n/etc/secret.jpg,x\n", [], "'/etc/secret.jpg' is not below"),
        ("image,caption\nhttps://a.b/1.jpg,x\n", [], "'https://a.b/1.jpg' is no file: fetch the files first"),
        (
            "image,caption\nimages/0.jpg,x\n",
            ["--file-column", "img"],
            "no column 'img'; the columns are image, caption",
        ),
        ("image,caption\nimages/0.jpg,x\n", ["--caption-column", "t"], "no column 't'; the columns are image, caption"),
        ("a,caption\nimages/0.jpg,x\n", [], "Say it with --file-column; the columns are a, caption"),
        ("image,b\nimages/0.jpg,x\n", [], "say --caption-column or --class-column; the columns are image, b"),
        ("image,title,label\nimages/0.jpg,x,y\n", [], "has captions (title) and classes (label): say"),
        ("image,b\nimages/0.jpg,x\n", ["--caption-column", "b", "--class-column", "b"], "give one of them"),
        (
            "image;caption\nimages/0.jpg;x\n",
            [],
            "one column 'image;caption': save it with commas, or with tabs as .tsv",
        ),
        ("image,caption\nimages/0.jpg,a red, round ball\n", [], "line 2: 3 columns, the first line has 2: cells that"),
        ("image,label\nimages/0.jpg,x\nimages/0.jpg,y\n", [], "images/0.jpg has two classes, 'x' and 'y'"),
        ("image,caption\na.txt,x\n", [], "name no image or clip"),
        ("image,caption\na.jpg,x\na.mp4,y\n", [], "name images (a.jpg) and clips (a.mp4)"),
        ("image,caption\nimages/9.jpg,x\n", [], "split train has no sample; 1 failures"),
        ("", [], "the first line has no names of columns"),
        ('image,caption\nimages/0.jpg,"a dog\nimages/1.jpg,a cat\n', [], "unexpected end of data"),
        ('image,caption\nimages/0.jpg,"Go" says a sign\n', [], "expected after"),
        ("image,caption,caption\nimages/0.jpg,a dog,a hound\n", [], "two columns have the name 'caption': rename one"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, pictures, capsys, rows, options, message):
    table = written(tmp_path / "in" / "train.csv", rows)
    assert prepare("table", "--train", table, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_class_of_val_that_train_has_not_and_another_kind_of_file(tmp_path, pictures, capsys):
    train = written(tmp_path / "in" / "train.csv", "image,label\nimages/0.jpg,dog\n")
    val = written(tmp_path / "in" / "val.csv", "image,label\nimages/1.jpg,cow\n")
    assert prepare("table", "--train", train, "--val", val, "--out", tmp_path / "out") == 2
    assert "val has class 'cow', which train has not: say all classes with --classes" in capsys.readouterr().err
    assert prepare("table", "--train", written(tmp_path / "a.xlsx", ""), "--out", tmp_path / "out") == 2
    assert "a.xlsx: a table is one of .csv, " in capsys.readouterr().err


def test_numbers_as_classes_keep_their_order_and_stand_for_places_in_a_list(tmp_path, pictures):
    rows = "image,label\nimages/0.jpg,0\nimages/1.jpg,2\nimages/2.jpg,10\nimages/3.jpg,1\n"
    table = written(tmp_path / "t.csv", rows)
    assert prepare("table", "--train", table, "--root", pictures, "--no-shuffle", "--out", tmp_path / "a") == 0
    assert read_info(tmp_path / "a").classes == ("0", "1", "2", "10")
    assert [s["cls"] for s in samples(tmp_path / "a")] == [b"0", b"2", b"3", b"1"]
    names = written(tmp_path / "names.json", [f"class {n}" for n in range(11)])
    options = ["--root", pictures, "--classes", names, "--no-shuffle"]
    assert prepare("table", "--train", table, *options, "--out", tmp_path / "b") == 0
    assert [s["cls"] for s in samples(tmp_path / "b")] == [b"0", b"2", b"10", b"1"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_any_system(tmp_path, pictures, end):
    table = written(tmp_path / "t.csv", end.join(["image,caption", "images/0.jpg,a cat", "images/1.jpg,a dog", ""]))
    assert prepare("table", "--train", table, "--root", pictures, "--out", tmp_path / "out") == 0
    assert captions(tmp_path / "out") == [["a cat"], ["a dog"]]
