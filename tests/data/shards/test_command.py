"""`python -m data.shards` for shards whose names say no split."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tarfile

import pytest
import yaml

from data.prepare.__main__ import main as prepare
from data.shards import ShardSet, write_shards
from data.shards.__main__ import main
from tests.helpers.places import ROOT
from tests.helpers.public import jpeg


def shard(path, keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for extension, data in (("jpg", jpeg(int(key))), ("txt", b"a dog")):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["00007", "00008", "00009", "00010"], "{00007..00010}.tar"),
        (["00000", "00002"], "*.tar"),
        (["9", "10"], "*.tar"),
        (["a", "b"], "*.tar"),
        (["00000"], "*.tar"),
    ],
)
@pytest.mark.parametrize("folder", ["web", "web [1] {a,b}*"])
def test_shards_of_no_split_are_indexed_and_the_line_that_is_told_reads_them(tmp_path, capsys, names, pattern, folder):
    root = tmp_path / folder
    for number, name in enumerate(names):
        shard(root / f"{name}.tar", [str(10 * number), str(10 * number + 1)])
    assert main([str(root)]) == 0
    count = len(names)
    first, line, other = capsys.readouterr().out.splitlines()
    assert first == f"{root}: shards of no split: {count} shards, {2 * count} samples, {count} indexes made"
    (said,) = yaml.safe_load(line.partition(": ")[2])["shards"]
    assert said.endswith(f"/{pattern}")
    shards = ShardSet.from_urls([said])
    assert shards.sizes == (2,) * count and sorted(path.stem for path in shards.paths) == sorted(names)
    words = shlex.split(
        other.partition("python -m data.prepare ")[2].replace("DIR", shlex.quote(str(tmp_path / "out")))
    )
    assert prepare([*words, "--workers", "1"]) == 0
    assert len(ShardSet.open(tmp_path / "out", "train")) == 2 * count
    assert main([str(root)]) == 0 and "0 indexes made" in capsys.readouterr().out


def test_a_damaged_one_and_an_empty_folder(tmp_path, capsys):
    shard(tmp_path / "00000.tar", ["1"])
    (tmp_path / "00001.tar").write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    assert "  00001.tar: no tar: the file is empty\n" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no shards (*.tar)\n"


def test_a_folder_with_signs_of_a_pattern_in_its_name(tmp_path, capsys):
    folder = tmp_path / "set [ab]*"
    write_shards(folder, "train", [{"__key__": "a", "txt": "1"}])
    assert main([str(folder)]) == 0 and "train: 1 shards, 1 samples" in capsys.readouterr().out


def test_names_with_other_hyphens_and_mixed_folders(tmp_path, capsys):
    shard(tmp_path / "a" / "cc3m-train-0000.tar", ["1"])
    assert main([str(tmp_path / "a")]) == 0
    assert "shards of no split: 1 shards, 1 samples, 1 indexes made" in capsys.readouterr().out
    for name in ("00000", "00001", "extra-1"):
        shard(tmp_path / "b" / f"{name}.tar", ["1"])
    assert main([str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "b: extra: 1 shards" in out and "shards of no split: 2 shards" in out and "{00000..00001}.tar" in out


def test_a_folder_of_any_name_is_prepared_and_printed(tmp_path):
    """Its name is no UTF-8, and the terminal takes nothing else."""
    (tmp_path / "a.txt").write_text("a dog\n" * 40)
    out = os.fsencode(tmp_path) + b"/o\xff"
    words = [
        sys.executable,
        "-m",
        "data.prepare",
        "text",
        "--input",
        str(tmp_path / "a.txt"),
        "--val-fraction",
        "0",
        "--out",
        out,
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(out + b"/dataset.json") and "o\\udcff" in done.stdout


def test_a_set_is_prepared_without_standard_error(tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n" * 40)
    options = ["text", "--input", tmp_path / "a.txt", "--val-fraction", "0", "--out", tmp_path / "out"]
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "data.prepare", *options]
    done = subprocess.run(closed, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0 and (tmp_path / "out" / "dataset.json").exists()
