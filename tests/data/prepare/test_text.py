"""Plain text and GLUE."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepare.layouts.glue import TASKS
from data.prepare.passages import clean, is_val, passages
from data.shards import read_info
from tests.helpers.places import SHARED
from tests.helpers.public import content, failures, folder, prepare, samples, token_ids, written

REAL = SHARED / "data"


def texts(out, split="train"):
    return [sample["txt"].decode() for sample in samples(out, split)]


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
    inputs = ["--input", tmp_path / "a.txt", tmp_path / "b.txt.gz"]
    for out, workers in (("x", 1), ("y", 2)):
        options = ["--words", 8, "--val-fraction", 0.1, "--shard-size", 300, "--out", tmp_path / out]
        assert prepare("text", *inputs, *options, workers=workers) == 0
    train, val = texts(tmp_path / "x"), texts(tmp_path / "x", "val")
    # Of the 18 blocks of 50 in both files two are val (18 * 0.1 rounds to 2).
    assert (len(train), len(val)) == (800, 100)
    assert sorted(train + val) == sorted(numbers)
    assert content(tmp_path / "x") == content(tmp_path / "y")
    assert read_info(tmp_path / "x").token_ids == token_ids(*numbers)


def test_lines_without_a_word_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("&nbsp;\na dog\n\u200b\n...\n")
    options = ["--unit", "line", "--val-fraction", 0, "--out", tmp_path / "x"]
    assert prepare("text", "--input", tmp_path / "a.txt", *options) == 0
    assert texts(tmp_path / "x") == ["a dog", "..."]
    assert failures(tmp_path / "x") == {"a text without a word": (2, ["a_0000000", "a_0000002"])}


@pytest.mark.slow
def test_blocks_of_val_are_counted_through_small_files(tmp_path):
    numbers = [f"sentence number {n} has a few words ." for n in range(600)]
    books = folder(tmp_path / "books", [(f"{n:03d}.txt", "\n".join(numbers[3 * n : 3 * n + 3])) for n in range(200)])
    for out, workers in (("x", 1), ("y", 2)):
        options = ["--words", 8, "--shard-size", 300, "--out", tmp_path / out]
        assert prepare("text", "--input", books, *options, workers=workers) == 0
    # One of 12 blocks at 0.05: the tenth, where the count of val rises from int(9 * 0.05 + 0.5) = 0 to 1.
    assert texts(tmp_path / "x", "val") == numbers[450:500]
    assert texts(tmp_path / "x") == numbers[:450] + numbers[500:]
    assert content(tmp_path / "x") == content(tmp_path / "y")


@pytest.mark.parametrize(
    ("unit", "fraction", "message"),
    [
        ("passage", 0.05, "--val-fraction 0.05 of 60 passages (in blocks of 50) leaves val empty: give a larger one"),
        ("line", 0.9, "--val-fraction 0.9 of 60 lines (in blocks of 50) leaves train empty: give a smaller one"),
        ("document", 0.05, "--val-fraction 0.05 of 1 documents leaves val empty: give a larger one"),
    ],
)
def test_a_split_that_would_stay_empty_is_an_error_before_the_work(tmp_path, capsys, unit, fraction, message):
    source = written(tmp_path / "a.txt", "\n".join(f"sentence number {n} has a few words ." for n in range(60)))
    out = tmp_path / "out"
    command = ["text", "--input", source, "--unit", unit, "--words", 8, "--out", out, "--val-fraction"]
    assert prepare(*command, fraction) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(out.glob("*.tar"))
    # The remedy may be followed in the same folder.
    assert prepare(*command, 0) == 0


def test_texts_without_a_passage(tmp_path, capsys):
    source = written(tmp_path / "a.txt", "\n")
    assert prepare("text", "--input", source, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: --input: there is no passage in it\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["First line .", "Second .", "Of another ."]),
        ("document", ["First line .\n\nSecond .", "Of another ."]),
        ("passage", ["First line . Second .", "Of another ."]),
    ],
)
def test_folders_of_texts(tmp_path, unit, expected):
    books = folder(
        tmp_path / "books",
        [
            ("one.txt", "First line .\n\nSecond .\n"),
            ("two/2.txt.gz", gzip.compress(b"Of another .\n")),
            ("cover.jpg", b"\xff"),
        ],
    )
    out = tmp_path / "out"
    options = ["--unit", unit, "--words", 4, "--val-fraction", 0]
    assert prepare("text", "--input", books, *options, "--out", out) == 0
    assert texts(out) == expected


def test_documents_that_are_empty_or_too_long_are_counted(tmp_path):
    books = folder(tmp_path / "in", [("a.txt", "x" * 100 + "\n"), ("b.txt", "\n\n"), ("c.txt", "word \n" * 200_000)])
    out = tmp_path / "out"
    assert prepare("text", "--input", books, "--unit", "document", "--val-fraction", 0, "--out", out) == 0
    assert len(texts(out)) == 1
    assert [names for _, names in sorted(failures(out).values(), key=str)] == [["b"], ["c"]]


# --------------------------------------------------------------------------------------------------------- GLUE

PAIR_HEADERS = {
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{2}\t1\t2\t{0}\t{1}"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "9\t1\t2\t{0}\t{1}\t{2}"),
    "qnli": ("index\tquestion\tsentence\tlabel", "9\t{0}\t{1}\t{2}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "9\t{0}\t{1}\t{2}"),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
        "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "9\t1\t2\tfiction\t(\t(\t(\t(\t{0}\t{1}\tneutral\t{2}",
    ),
}


def test_single_sentences(tmp_path):
    sst = folder(
        tmp_path / "SST-2",
        [
            ("train.tsv", 'sentence\tlabel\nhide " new secretions \t0\ncharming\t1\n\t1\nno label\n'),
            ("dev.tsv", "sentence\tlabel\nit 's fine\t1\n"),
        ],
    )
    out = tmp_path / "sst"
    assert prepare("glue", "--task", "sst2", "--folder", sst, "--no-shuffle", "--out", out) == 0
    info = read_info(out)
    assert info.kind == "text_class" and info.classes == ("terrible", "great")
    assert [(s["txt"], s["cls"]) for s in samples(out)] == [(b'hide " new secretions', b"0"), (b"charming", b"1")]
    assert texts(out, "val") == ["it 's fine"]
    assert failures(out) == {"an empty text": (1, ["train_0000003"]), "1 columns, need 2": (1, ["train_0000004"])}

    cola = folder(
        tmp_path / "CoLA",
        [
            ("train.tsv", "gj04\t1\t\tThey drank .\ngj04\t0\t*\tThey drank pub .\n"),
            ("dev.tsv", "x\t1\t\tBirds sing .\n"),
        ],
    )
    out = tmp_path / "cola"
    assert prepare("glue", "--task", "cola", "--folder", cola, "--no-shuffle", "--out", out) == 0
    assert [(s["txt"], s["cls"]) for s in samples(out)] == [(b"They drank .", b"1"), (b"They drank pub .", b"0")]
    assert read_info(out).classes == ("incorrect", "correct") and read_info(out).metrics == ("matthews",)


@pytest.mark.parametrize("task", sorted(PAIR_HEADERS))
def test_pairs(tmp_path, task):
    header, row = PAIR_HEADERS[task]
    written_labels = list(TASKS[task].labels)
    rows = [row.format(f"first {n}", "then {first}", label) for n, label in enumerate(written_labels)]
    file = "\n".join([header, *rows, row.format("a", "b", "-")]) + "\n"
    names = ["dev_matched.tsv", "dev_mismatched.tsv"] if task == "mnli" else ["dev.tsv"]
    source = folder(tmp_path / "in", [(name, file) for name in ("train.tsv", *names)])
    out = tmp_path / "out"
    assert prepare("glue", "--task", task, "--folder", source, "--no-shuffle", "--out", out) == 0
    info = read_info(out)
    assert info.classes == tuple(TASKS[task].labels.values()) and len(info.splits) == 1 + len(names)
    assert texts(out) == [f"first {n} | then {{first}}" for n in range(len(rows))]
    assert [s["cls"] for s in samples(out)] == [str(n).encode() for n in range(len(rows))]
    assert json.loads(samples(out)[0]["json"]) == {"first": "first 0", "second": "then {first}"}
    assert [count for count, _ in failures(out).values()] == [1]
    other = tmp_path / "other"
    options = ["--pair", "{second} follows from: {first}", "--name-map", f"{info.classes[0]}=never"]
    assert prepare("glue", "--task", task, "--folder", source, *options, "--no-shuffle", "--out", other) == 0
    assert texts(other)[0] == "then {first} follows from: first 0" and read_info(other).classes[0] == "never"


def test_scores_become_the_nearest_class_and_are_kept(tmp_path):
    rows = [
        ("a", "b", "3.800"),
        ("c", "d", "2.5"),
        ("e", "f", "0"),
        ("g", "h", "5.6"),
        ("i", "j", "high"),
        ("k", "l", "nan"),
    ]
    file = (
        "\n".join(["index\tsentence1\tsentence2\tscore", *(f"{n}\t" + "\t".join(row) for n, row in enumerate(rows))])
        + "\n"
    )
    source = folder(tmp_path / "in", [("train.tsv", file), ("dev.tsv", file)])
    out = tmp_path / "out"
    assert prepare("glue", "--task", "stsb", "--folder", source, "--no-shuffle", "--out", out) == 0
    info = read_info(out)
    assert info.classes == ("zero", "one", "two", "three", "four", "five") and info.metrics == ("pearson", "spearman")
    found = [(s["cls"], json.loads(s["json"])["score"]) for s in samples(out)]
    assert found == [(b"4", 3.8), (b"3", 2.5), (b"0", 0.0)]
    assert sum(count for count, _ in failures(out).values()) == 3


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        ([], [], "no train.tsv"),
        ([], [("train.tsv", "text\tlabel\nx\t1\n")], "no column 'sentence'"),
        (["--pair", "{first}"], [], "needs {first} and {second}"),
    ],
)
def test_faults_of_glue(tmp_path, capsys, options, files, message):
    (tmp_path / "in").mkdir()
    source = folder(tmp_path / "in", files)
    assert prepare("glue", "--task", "sst2", "--folder", source, *options, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


@pytest.mark.shared
@pytest.mark.parametrize(
    ("task", "name", "sizes", "ones"),
    [
        ("mrpc", "MRPC", {"train": 3_667, "val": 408}, 279),
        pytest.param("sst2", "SST-2", {"train": 67_349, "val": 872}, 444, marks=pytest.mark.slow),
    ],
)
def test_real_glue(tmp_path, task, name, sizes, ones):
    assert prepare("glue", "--task", task, "--folder", REAL / "text" / name, "--out", tmp_path / "out") == 0
    info = read_info(tmp_path / "out")
    assert {split: s.samples for split, s in info.splits.items()} == sizes
    assert not failures(tmp_path / "out") and not failures(tmp_path / "out", "val")
    assert sum(s["cls"] == b"1" for s in samples(tmp_path / "out", "val")) == ones
