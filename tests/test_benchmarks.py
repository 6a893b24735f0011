"""The benchmarks run: at sizes that say nothing about speed."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from benchmarks import ablation, checkpoints, moe_layer, recompute
from benchmarks import data as data_benchmark
from benchmarks import evaluation as evaluation_benchmark
from data.synthetic import WorldSize, write_demo_world
from tests.helpers.places import ROOT


@pytest.mark.slow
def test_layer_table(monkeypatch, capsys):
    small = {"width": 16, "heads": 2, "ffn": 32, "rows": 2, "length": 9, "repeats": 1}
    monkeypatch.setattr(sys, "argv", ["moe_layer", *(f"--{key}={value}" for key, value in small.items())])
    moe_layer.main()
    table = capsys.readouterr().out
    assert all(name in table for name in moe_layer.VARIANTS) and "x dense" in table


def test_recomputation_table(monkeypatch, capsys):
    """What is kept does not depend on the machine: selective lies between none and block."""
    small = {"width": 32, "heads": 2, "ffn": 128, "rows": 4, "length": 16, "depth": 2, "repeats": 1}
    monkeypatch.setattr(sys, "argv", ["recompute", *(f"--{key}={value}" for key, value in small.items())])
    monkeypatch.setattr(recompute, "BLOCKS", recompute.BLOCKS[:3])  # dense, merge, dispatch
    recompute.main()
    rows = [line[36:].split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 3 * len(recompute.BLOCKS)
    for start in range(0, len(rows), 3):
        none, selective, block = (float(row[2]) for row in rows[start : start + 3])
        assert block < selective < none == 1.0, rows[start : start + 3]


@pytest.mark.slow
def test_data_table(monkeypatch, capsys, tmp_path):
    for kind, extension in (("images", "jpg"), ("clips", "mp4")):  # one of each, the smaller the better
        items = getattr(data_benchmark, f"made_{kind}")(1)
        assert [name for name, _ in items] == [extension]
        (tmp_path / f"one.{extension}").write_bytes(items[0][1])
    small = ["--workers", "1", "--rounds", "1", "--images", "8", "--clips", "4", "--side", "32"]
    monkeypatch.setattr(sys, "argv", ["data", "--data", str(tmp_path), *small])
    data_benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if "worker(s)" in line] == ["images", "clips"]
    for way in data_benchmark.WAYS:
        speeds = [float(line.split()[1]) for line in lines if line.split()[0] == way]
        assert len(speeds) == 2 and min(speeds) > 0, way


def test_ablation_table(tmp_path):
    write_demo_world(
        tmp_path, 0, WorldSize(shapes=24, pairs=24, clips=12, clip_captions=6, sentences=24, evaluation=12)
    )
    config = tmp_path / "tiny.yaml"
    tasks = [{"name": name, "path": str(tmp_path / folder), "batch_size": 4} for name, folder in FOLDERS.items()]
    raw = {"base": str(ROOT / "configs" / "ablation.yaml"), "data": {"tasks": tasks}}
    config.write_text(yaml.safe_dump(raw | {"model": {"width": 16, "heads": 2, "ffn": 32}}))
    results = [ablation.run_variant(name, 0, 2, str(config), 4) for name in ("dense", "attribute", "LIMoE")]
    json.dumps(results)
    rows = ablation.table(results).splitlines()
    assert len(rows) == 2 + 3 and rows[2].startswith("| dense") and rows[2].endswith("| 1.00 |")
    assert all(0 <= result["shapes"] <= 1 for result in results)


FOLDERS = {"shapes": "shapes", "clips": "clips", "sentences": "sentences", "captions": "pairs", "retrieval": "pairs"}


@pytest.mark.slow
def test_checkpoint_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["checkpoints", "--layers=1", "--width=8", "--ranks=1", f"--folder={tmp_path}"])
    monkeypatch.setattr(checkpoints, "CASES", ("save, asynchronous", "restore, cut by columns"))
    checkpoints.main()
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2


def test_evaluation_lines(monkeypatch, capsys):
    small = {
        "width": 64,
        "depth": 1,
        "side": 32,
        "rounds": 1,
        "images": 8,
        "batch-size": 4,
        "captions": 1,
        "words": 3,
        "retrieved": 20,
    }
    monkeypatch.setattr(
        sys, "argv", ["evaluation", *(f"--{key}={value}" for key, value in small.items()), "--texts=40"]
    )
    evaluation_benchmark.main()
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].rstrip(":,") for line in lines] == ["classification", "captions", "retrieval"]
    assert "ratio" in lines[0] and "ratio" in lines[1] and "20 images and 40 texts" in lines[2]
