"""The command as a whole: what stays, going on after a kill, the same bytes from any number of workers, the summary."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import webdataset

from data.prepare.__main__ import LAYOUTS, main, make_parser
from data.prepare.progress import PROGRESS_FILE, work_on
from data.shards import DatasetError, read_info
from tests.helpers.places import ROOT, SHARED
from tests.helpers.public import content, failures, folder, jpeg, lines, pack, prepare, samples, written

REAL = SHARED / "data"


@pytest.fixture
def pets(tmp_path):
    entries = [(f"{kind}/{n}.jpg", jpeg(n)) for kind in ("cat", "dog") for n in range(20)]
    return pack(tmp_path / "pets.tar.gz", [*entries, ("dog/bad.jpg", b"no image")])


# ----------------------------------------------------------------------------------------------- what stays


def test_complete_output_is_left_alone_and_incomplete_output_redone(tmp_path, pets, capsys):
    out = tmp_path / "out"
    command = ["class-archive", "--train", pets, "--out", out]
    assert prepare(*command) == 0
    shard = out / "train-000000.tar"
    whole, before = shard.read_bytes(), shard.stat().st_mtime_ns
    assert prepare(*command) == 0 and shard.stat().st_mtime_ns == before
    assert "left alone" in capsys.readouterr().out
    assert prepare(*command, "--overwrite") == 0 and shard.stat().st_mtime_ns != before
    (out / "dataset.json").unlink()
    shard.write_bytes(b"cut off")
    assert prepare(*command) == 0 and shard.read_bytes() == whole
    (out / "my notes").write_text("keep")
    assert prepare(*command, "--overwrite") == 2 and "my notes" in capsys.readouterr().err
    assert shard.read_bytes() == whole and (out / "summary.json").exists()


@pytest.mark.parametrize("begun", [False, True, "lost"])
def test_other_options_or_inputs_are_refused(tmp_path, pets, capsys, begun):
    """begun: a killed run; lost: of a complete one dataset.json was not copied."""
    out = tmp_path / "out"
    command = ["class-archive", "--train", pets, "--out", out]
    assert prepare(*command) == 0
    if begun:
        plan = json.loads((out / "summary.json").read_text())["plan"]
        (out / "dataset.json").unlink()
    if begun is True:
        (out / PROGRESS_FILE).write_text(json.dumps({"plan": plan}) + "\n")
    files = content(out)
    assert prepare(*command, "--resize", 4) == 2
    error = capsys.readouterr().err
    assert "resize: [None] there, [4] now" in error and "--overwrite" in error
    os.utime(pets, ns=(1, 1))
    assert prepare(*command) == 2 and "pets.tar.gz" in capsys.readouterr().err
    assert content(out) == files
    assert prepare(*command, "--overwrite") == 0


def test_overwrite_deletes_no_split_that_the_command_does_not_make(tmp_path, pets, capsys):
    out = tmp_path / "out"
    assert prepare("class-archive", "--train", pets, "--val", pets, "--out", out) == 0
    files = content(out)
    assert prepare("class-archive", "--test", pets, "--out", out) == 2
    assert "with all its splits" in capsys.readouterr().err
    assert prepare("class-archive", "--test", pets, "--overwrite", "--out", out) == 2
    assert capsys.readouterr().err == (
        f"error: {out} has split train, val, which this command does not make; nothing was deleted: name the inputs of all "
        "splits in one command with --overwrite, or give another --out, or remove the folder\n"
    )
    assert content(out) == files
    splits = ["--train", pets, "--val", pets, "--test", pets]
    assert prepare("class-archive", *splits, "--overwrite", "--out", out) == 0
    assert list(read_info(out).splits) == ["test", "train", "val"] and read_info(out).splits["test"].samples == 40


def test_overwrite_with_inputs_that_cannot_be_used_deletes_nothing(tmp_path, pets, capsys):
    out = tmp_path / "out"
    assert prepare("class-archive", "--train", pets, "--out", out) == 0
    files = content(out)
    broken = written(tmp_path / "broken.tar", "no tar")
    assert prepare("class-archive", "--train", broken, "--overwrite", "--out", out) == 2
    assert "broken.tar: cannot be read" in capsys.readouterr().err and content(out) == files


def test_folders_with_signs_of_a_pattern_in_their_names(tmp_path):
    source = folder(tmp_path / "in [ab]*", [("cat/1.jpg", jpeg(1)), ("dog [x]/2.jpg", jpeg(2))])
    out = tmp_path / "out [ab]* {1,2}"
    assert prepare("class-folders", "--train", source, "--out", out) == 0
    assert prepare("class-folders", "--train", source, "--overwrite", "--out", out) == 0
    assert read_info(out).classes == ("cat", "dog [x]") and len(samples(out)) == 2


def test_shards_of_another_program_are_not_deleted_without_being_told(tmp_path, pets, capsys):
    out = tmp_path / "out"
    folder(out, [("train-000000.tar", b"of another program")])
    assert prepare("class-archive", "--train", pets, "--out", out) == 2
    assert "neither made nor began" in capsys.readouterr().err
    assert (out / "train-000000.tar").read_bytes() == b"of another program"
    assert prepare("class-archive", "--train", pets, "--overwrite", "--out", out) == 0


def test_a_split_of_which_no_file_is_there_is_found_before_the_work(tmp_path, capsys):
    images = folder(tmp_path / "in", [("1.jpg", jpeg())])
    train = lines(tmp_path / "train.jsonl", [{"image": "1.jpg", "captions": ["a cat"]}])
    val = lines(tmp_path / "val.jsonl", [{"image": "2.jpg", "captions": ["a dog"]}])
    out = tmp_path / "out"
    assert prepare("caption-archive", "--train", images, train, "--val", images, val, "--out", out) == 2
    output, error = capsys.readouterr()
    assert error == f"error: {out}: split val has no sample; 2 failures, see above; nothing was made\n"
    assert "1 x not in in: 2.jpg" in output and list(out.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    refused = pytest.raises(DatasetError, match="another process is writing it")
    with work_on(tmp_path, {}, False), refused, work_on(tmp_path, {}, False):
        pass


def test_a_split_without_a_sample_is_an_error(tmp_path, capsys):
    archive = pack(tmp_path / "a.tar.gz", [("x/1.jpg", b"no image")])
    assert prepare("class-archive", "--train", archive, "--out", tmp_path / "out") == 2
    assert "split train has no sample; 1 failures" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(("fraction", "empty", "remedy"), [(0.001, "val", "larger"), (0.999, "train", "smaller")])
def test_a_held_out_part_of_nothing_or_all_is_refused_before_anything_is_read(
    tmp_path, capsys, fraction, empty, remedy
):
    archive = pack(tmp_path / "a.tar.gz", [(f"x/{i}.jpg", b"no image") for i in range(5)])
    assert prepare("class-archive", "--train", archive, "--val-fraction", fraction, "--out", tmp_path / "out") == 2
    expected = f"--val-fraction {fraction} of 5 samples leaves {empty} empty: give a {remedy} one"
    assert expected in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


# ----------------------------------------------------------------------------------- workers, kills, same bytes


def many_images(root):
    entries = [(f"{n % 3}/{n}.jpg", jpeg(n % 250, (320, 240))) for n in range(120)]
    return folder(root, [*entries, ("0/broken.jpg", b"x")])


@pytest.mark.slow
def test_one_worker_and_three_write_the_same(tmp_path):
    source = many_images(tmp_path / "in")
    command = ["class-folders", "--train", source, "--val-fraction", 0.1, "--shard-size", 10, "--resize", 64]
    assert prepare(*command, "--out", tmp_path / "one", workers=1) == 0
    assert prepare(*command, "--out", tmp_path / "three", workers=3) == 0
    assert content(tmp_path / "one") == content(tmp_path / "three")
    splits = read_info(tmp_path / "one").splits
    assert splits["train"].samples + splits["val"].samples == 120 and splits["train"].shards >= 10


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_folder(tmp_path):
    source = many_images(tmp_path / "in")
    options = ["--train", source, "--val-fraction", "0.1", "--shard-size", "5", "--resize", "64"]
    assert prepare("class-folders", *options, "--out", tmp_path / "whole") == 0
    out = tmp_path / "killed"
    progress = out / PROGRESS_FILE
    command = [sys.executable, "-m", "data.prepare", "class-folders", *options, "--out", str(out)]

    def done():
        return progress.read_text().count("\n") - 1 if progress.exists() else 0

    for further in (["--workers", "2"], ["--workers", "1", "--overwrite"]):
        before = done()
        process = subprocess.Popen([*command, *further], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while done() < before + 3:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.002)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert psutil.wait_procs(children, timeout=20)[1] == []
        assert not (out / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    lines = progress.read_text()
    with progress.open("a") as file:
        file.write('{"split": "train", "sha')  # cut off in the middle of a line
    assert prepare("class-folders", *options, "--out", out) == 0
    assert content(out) == content(tmp_path / "whole")
    finished = {json.loads(line)["shard"] for line in lines.splitlines()[1:] if json.loads(line)["split"] == "train"}
    assert len(finished) >= 6
    for shard in finished:
        path = out / f"train-{shard:06d}.tar"
        assert path.stat().st_mtime_ns == kept[path]


@pytest.mark.parametrize("damage", ["shard", "index"])
def test_a_finished_shard_that_was_damaged_is_made_again(tmp_path, pets, damage):
    command = ["class-archive", "--train", pets, "--shard-size", 10]
    assert prepare(*command, "--out", tmp_path / "whole") == 0
    out = tmp_path / "out"
    assert prepare(*command, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    (out / "dataset.json").unlink()
    records = [
        {"split": "train", "shard": n, "samples": len(samples_of(out, n)), "token_ids": [], "failures": {}}
        | {"tar_bytes": (out / f"train-{n:06d}.tar").stat().st_size}
        for n in range(summary["splits"]["train"]["shards"])
    ]
    (out / PROGRESS_FILE).write_text("".join(json.dumps(r) + "\n" for r in [{"plan": summary["plan"]}, *records[:2]]))
    victim = out / ("train-000001.tar" if damage == "shard" else "train-000001.tar.index.json")
    victim.write_bytes(victim.read_bytes()[:100])
    assert prepare(*command, "--out", out) == 0
    assert all((out / name).read_bytes() == data for name, data in content(tmp_path / "whole").items() if "tar" in name)


def samples_of(out, number):
    return json.loads((out / f"train-{number:06d}.tar.index.json").read_text())["samples"]


def test_an_empty_shard_keeps_the_numbers_without_gaps(tmp_path):
    entries = [(f"x/{n}.jpg", b"bad" if 2 <= n < 4 else jpeg(n)) for n in range(6)]
    out = tmp_path / "out"
    command = ["class-folders", "--train", folder(tmp_path / "in", entries), "--no-shuffle", "--shard-size", 2]
    assert prepare(*command, "--out", out) == 0
    assert read_info(out).splits["train"].shards == 3 and len(samples(out)) == 4
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert keys == ["000000_x_0", "000001_x_1", "000004_x_4", "000005_x_5"]


# ------------------------------------------------------------------------------------------ order, val, summary


def test_mixed_order_depends_on_the_seed_alone(tmp_path, pets):
    def keys(*options):
        out = tmp_path / "_".join(options or ("plain",))
        assert prepare("class-archive", "--train", pets, *options, "--out", out) == 0
        return [sample["__key__"].partition("_")[2] for sample in samples(out)]

    in_order = keys("--no-shuffle")
    assert in_order == [f"{kind}_{n}" for kind in ("cat", "dog") for n in range(20)]
    mixed = keys()
    assert sorted(mixed) == sorted(in_order) and mixed != in_order and mixed == keys("--seed", "0")
    assert 5 <= sum(key.startswith("cat") for key in mixed[:20]) <= 15
    assert keys("--seed", "1") != mixed


def test_val_does_not_change_when_the_source_grows(tmp_path):
    entries = [(f"x/{n}.jpg", jpeg(n % 200)) for n in range(200)]
    small, large = folder(tmp_path / "small", entries[:120]), folder(tmp_path / "large", entries)

    def val_names(source):
        out = tmp_path / f"{Path(source).name}_out"
        assert prepare("class-folders", "--train", source, "--val-fraction", 0.2, "--out", out) == 0
        names = {s: {f["__key__"].partition("_")[2] for f in samples(out, s)} for s in ("train", "val")}
        assert not names["train"] & names["val"]
        return names["val"]

    few, more = val_names(small), val_names(large)
    assert few == {name for name in more if int(name.split("_")[1]) < 120}
    assert 20 <= len(more) <= 60


def test_the_summary_counts_failures_by_reason(tmp_path, capsys):
    bad = [(f"x/bad{n}.jpg", b"no image" + bytes(n)) for n in range(5)]
    source = folder(tmp_path / "in", [("x/1.jpg", jpeg()), *bad, ("x/readme.txt", "text")])
    out = tmp_path / "out"
    assert prepare("class-folders", "--train", source, "--no-shuffle", "--shard-size", 2, "--out", out) == 0
    found = failures(out)
    (reason, (count, examples)), (other, notes) = found.items()
    assert reason.startswith("image of N bytes: not a JPEG") and "0x" not in reason
    assert count == 5 and examples == ["x/bad0.jpg", "x/bad1.jpg", "x/bad2.jpg"]
    assert other == "no image" and notes == (1, ["x/readme.txt"])
    summary = json.loads((out / "summary.json").read_text())
    part = summary["splits"]["train"]
    size = sum(path.stat().st_size for path in out.glob("*.tar"))
    assert (part["samples"], part["shards"], part["failed"], part["bytes"]) == (1, 3, 6, size)
    assert summary["seconds"] >= 0 and summary["plan"]["options"]["layout"] == ["class-folders"]
    report = capsys.readouterr().out
    assert f"train: 1 samples, 3 shards, {size} bytes, 6 failures" in report
    assert "5 x image of N bytes" in report and "x/bad0.jpg, x/bad1.jpg, x/bad2.jpg" in report


def test_texts_and_names_that_are_no_characters(tmp_path, capsys):
    """Half of a character in JSON, bytes that are no UTF-8 and terminal codes in names of files."""
    strange = os.fsdecode(b"x/\xff\x1b[31m")
    files = [("x/1.jpg", jpeg(1)), ("x/2.jpg", jpeg(2)), (f"{strange}a.jpg", jpeg(3)), (f"{strange}b.jpg", b"")]
    source = folder(tmp_path / "in", files)
    texts = [{"image": "1.jpg", "captions": ["a \ud83d cut smile"]}, {"image": "2.jpg", "captions": ["a \U0001f600"]}]
    out = tmp_path / "captions"
    assert prepare("caption-archive", "--train", source, lines(tmp_path / "a.jsonl", texts), "--out", out) == 0
    assert [json.loads(sample["json"]) for sample in samples(out)] == [{"captions": ["a \U0001f600"]}]
    assert failures(out)["text that cannot be written as UTF-8"] == (1, ["x/1.jpg"])
    assert prepare("class-folders", "--train", source, "--out", tmp_path / "classes") == 0
    assert len(samples(tmp_path / "classes")) == 3
    report = capsys.readouterr().out
    assert "\x1b" not in report and r"\udcff\x1b[31mb.jpg" in report
    classes = written(tmp_path / "classes.json", ["x", "\ud83d"])
    assert prepare("class-folders", "--train", source, "--classes", classes, "--out", tmp_path / "bad") == 2
    assert "cannot be written as UTF-8" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_example_parses_and_every_help_says_what_is_expected(layout, capsys):
    words = layout.example.replace("'", "").replace("people fighting", "people_fighting").split()
    assert make_parser().parse_args(words).layout == layout.name
    with pytest.raises(SystemExit):
        make_parser().parse_args([layout.name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert layout.expects.split()[0] in text and "example: python -m data.prepare" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["class-archive"], "at least one of --train, --val, --test"),
        (["class-archive", "--train", "absent.tar"], "absent.tar: No such file"),
        (["class-archive", "--train", "PETS", "--name-map", "cow=a cow"], "no class 'cow' to rename"),
        (["class-archive", "--train", "PETS", "--name-map", "dog="], "CLASS=NAME"),
        (["class-archive", "--train", "PETS", "--name-map", "dog=cat"], "two classes have the name 'cat'"),
        (["class-archive", "--train", "PETS", "--resize", "0"], "--resize 0"),
        (["class-archive", "--train", "PETS", "--classes", "PETS"], "is not UTF-8"),
        (["class-archive", "--train", "PETS", "--val", "PETS", "--val-fraction", "0.1"], "no val of its own"),
        (["class-archive", "--train", "PETS", "--shard-size", "0"], "must be positive"),
        (["class-archive", "--train", "PETS", "--max-gib", "nan"], "must be positive"),
        (["text", "--input", "absent.txt"], "absent.txt"),
        (["text", "--input", "PETS", "--val-fraction", "1"], "--val-fraction"),
    ],
)
def test_wrong_arguments(tmp_path, pets, capsys, arguments, message):
    arguments = [pets if argument == "PETS" else argument for argument in arguments]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.shared
@pytest.mark.slow
def test_real_small(tmp_path):
    assert main(["real-small", "--data", str(REAL), "--out", str(tmp_path)]) == 0
    sizes = {p.name: {k: s.samples for k, s in read_info(p).splits.items()} for p in tmp_path.iterdir()}
    assert sizes["cifar10"] == {"train": 10_000, "val": 2_000}
    assert sizes["flickr8k"] == {"train": 2_400, "val": 500}
    assert sizes["fights"] == {"train": 180, "val": 40} and set(sizes["text"]) == {"train", "val"}
    assert read_info(tmp_path / "fights").classes == ("people fighting", "people not fighting")
