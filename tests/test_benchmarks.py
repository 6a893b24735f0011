"""The benchmarks run: at sizes that say nothing about speed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import ablation, checkpoints, gpu_step, measuring, moe_layer, recompute, revisions, roofline
from benchmarks import data as data_benchmark
from benchmarks import evaluation as evaluation_benchmark
from benchmarks.batches import batch_of
from benchmarks.peers import __main__ as peers
from benchmarks.peers import batches, clip, uni_perceiver
from data.synthetic import WorldSize, write_demo_world
from model.flops import forward_flops, passes_of, work_of
from tests.helpers.batches import BATCHES, VOCABULARY_SIZE
from tests.helpers.devices import DEVICES
from tests.helpers.distributed import run_ranks
from tests.helpers.models import make, tiny
from tests.helpers.places import ROOT
from tests.helpers.runs import environment


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


def tiny_config(folder: Path) -> str:
    """A made world and a configuration that learns from it."""
    write_demo_world(folder, 0, WorldSize(shapes=24, pairs=24, clips=12, clip_captions=6, sentences=24, evaluation=12))
    config = folder / "tiny.yaml"
    tasks = [{"name": name, "path": str(folder / place), "batch_size": 4} for name, place in FOLDERS.items()]
    raw = {"base": str(ROOT / "configs" / "ablation.yaml"), "data": {"tasks": tasks}}
    config.write_text(yaml.safe_dump(raw | {"model": {"width": 16, "heads": 2, "ffn": 32}}))
    return str(config)


def test_ablation_table(tmp_path):
    config = tiny_config(tmp_path)
    results = [ablation.run_variant(name, 0, 2, config, 4) for name in ("dense", "attribute", "LIMoE")]
    json.dumps(results)
    rows = ablation.table(results).splitlines()
    assert len(rows) == 2 + 3 and rows[2].startswith("| dense") and rows[2].endswith("| 1.00 |")
    assert all(0 <= result["shapes"] <= 1 for result in results)


FOLDERS = {"shapes": "shapes", "clips": "clips", "sentences": "sentences", "captions": "pairs", "retrieval": "pairs"}


def test_a_clock_leaves_out_timed_calls_inside(monkeypatch):
    """The outer call begins at 0 and ends at 6, and the inner one takes the time from 1 to 3."""
    monkeypatch.setattr(measuring.time, "process_time", iter([0.0, 1.0, 3.0, 6.0]).__next__)
    clock = measuring.Clock()
    clock.timed("outer", clock.timed("inner", lambda: None))()
    assert clock.seconds == {"outer": 4.0, "inner": 2.0} and clock.calls == {"outer": 1, "inner": 1}


@pytest.mark.slow
def test_what_measuring_costs(tmp_path):
    command = [sys.executable, "-m", "benchmarks.measuring", "--config", tiny_config(tmp_path), "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-4:]
    assert [line[:16].rstrip() for line in lines] == ["use of experts", "entropy of gates", "adding up", "a record"]
    shares = [float(line[16:].split("%")[0]) for line in lines]
    assert all(0 < share < 100 for share in shares), lines


@pytest.mark.slow
def test_two_checkouts_in_turn(tmp_path):
    small = ["--stretches", "1", "--steps", "2", "optimizer.warmup_steps=0", "data.workers=1"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.revisions",
        f"--old={ROOT}",
        f"--config={tiny_config(tmp_path)}",
        *small,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line[:20].rstrip() for line in lines] == list(revisions.FIGURES)
    assert all(float(line[20:].split()[0]) > 0 for line in lines)


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


TINY = batches.Sizes(width=16, depth=1, heads=2, ffn=32, image=8, patch=4, rows=3, names=5, words=7, caption=6, text=9)


def test_peers_get_what_ours_gets():
    """Pixels of a picture, and labels where the public code looks for them: -1 where nothing is read."""
    of_task = batches.task_batches(TINY)
    segment = of_task["classification"].inputs.segments[0]
    pictures_B3HW = batches.images(segment, TINY.patch)
    # Row 5, column 2 of a picture is row 1, column 2 of the third patch (4 x 4 pixels, two patches a row); red comes first.
    expected = (segment.values[0, 2, 1 * 4 + 2] / 255 - 0.485) / 0.229
    assert pictures_B3HW[0, 0, 5, 2] == pytest.approx(expected.item(), abs=1e-6)

    for task, columns in (("captions", 6), ("masked text", 9)):
        batch = of_task[task]
        given = uni_perceiver.batch_of(batch, task, TINY.patch)
        labels_BL = given["target_idx_list"][0]
        assert labels_BL.shape == (3, columns)
        assert labels_BL[labels_BL >= 0].tolist() == batch.labels_Q.tolist()
    captions = uni_perceiver.batch_of(of_task["captions"], "captions", TINY.patch)
    words = captions["input_sample_list"][1]
    assert words["data"].shape == (3, 12) and words["moe_embedding"].shape == (2, 8)  # words, then queries
    read = captions["target_idx_list"][0] >= 0
    assert torch.equal(words["invalid_mask"][:, 6:] == 0, read)  # the code drops what is padding, and all else is read

    pictures, text_BL = clip.padded(clip.pairs(2, own_length=True))
    assert pictures.shape == (2, 3, 224, 224) and text_BL.shape == (2, clip.PLACES)
    assert (text_BL == clip.WORDS - 1).sum(dim=1).tolist() == [1, 1]  # the end of text, by which its tower reads


def test_peers_table_and_errors(capsys, tmp_path):
    linear = torch.nn.Linear(4, 4)
    side = peers.Side(linear, peers.adam(linear), lambda number: linear(torch.ones(1, 4)).sum() + number)
    assert len(peers.Case("one", side, side).row(rounds=2).split()) >= 7
    seen: list[torch.dtype] = []
    side = dataclasses.replace(
        side, loss=lambda number: (y := linear(torch.ones(1, 4)), seen.append(y.dtype), y.sum())[2]
    )
    peers.Case("one", side, side).with_products_in(torch.float32, torch.bfloat16).row(rounds=1)
    assert seen == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert peers.main(["--uni-perceiver", str(tmp_path)]) == 2
    assert "no clone" in capsys.readouterr().err


STEP = [
    *("--presets", "uni_perceiver_moe_tiny", "--task", "imagenet1k", "--steps", "1", "--experts", "2", "--scale", "0.005"),
    *("--peer-tokens", "40", "--set", "model.depth=2", "model.width=32", "model.heads=2", "model.ffn=64", "model.image_size=32"),
]  # fmt: skip


def test_made_batches_have_words_and_pixels_at_their_places():
    """Tokens that were all alike would choose one expert. 4 of 128 pairs; 16 patches of 32 x 32 are 4 x 4 places."""
    options = gpu_step.arguments(["--scale", "0.03", "--set", "model.image_size=128"])
    run = gpu_step.configured("limoe_s32", options)
    (load,) = gpu_step.loads_of(run, [])
    batch = batch_of(run.model, load, 1000)
    (pictures,), (texts,) = batch.inputs.segments, batch.candidates.segments
    assert pictures.values.shape == (4, 16, 3 * 32 * 32) and len(pictures.positions.flatten(0, 1).unique(dim=0)) == 16
    assert len(pictures.values.unique()) == 256 and len(texts.values.unique()) > 1 and texts.values.max() < 999
    assert batch.symmetric and batch.labels_Q.tolist() == [0, 1, 2, 3]


def told(rank: int, arguments: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        gpu_step.main(arguments)
    return out.getvalue()


@pytest.mark.parametrize("device", DEVICES)
def test_step_on_a_device(device):
    """A step of a tiny model, and blocks of others. 1,000 names of 8 tokens, and 4 pictures of 1 + 2 x 2."""
    if device == "cpu":
        (out,) = run_ranks(1, told, [*STEP, "--device", "cpu"])
    else:
        command = [sys.executable, "-m", "benchmarks.gpu_step", *STEP]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        out = done.stdout
    machine, titles, step, blocks, columns, *peers = out.splitlines()
    assert machine.startswith("CPU, torch" if device == "cpu" else torch.cuda.get_device_name())
    assert "roofline" in titles and "MFU" in columns and "8 x 5 tokens" in blocks
    _, task, tokens, *numbers = step.split()
    assert (task, tokens) == ("imagenet1k", "8020")
    *measured, mfu, with_update, predicted_ms, predicted_mfu = numbers
    assert len(measured) == 6 and min(map(float, [*measured, predicted_ms])) > 0 and predicted_mfu.endswith("%")
    assert device == "cuda" or (mfu, with_update) == ("n/a", "n/a")
    lines = {line[2:38].strip(): line[38:] for line in peers}
    assert len(lines) == 9
    for name, line in lines.items():
        skipped = line.startswith("skipped: ")
        assert skipped or float(line.split()[2]) > 0, name
        assert not (skipped and name.startswith(("ours", "torch", "DeepSpeed"))), line


def test_attention_is_counted_in_whole_tiles():
    """Two words cost as 64, 65 keys as 128: 4 * 8 numbers for each pair of the three rows and two heads, at 100 FLOP/s."""
    counter = roofline.Counter(roofline.Machine(*[100.0] * 8))
    query, key = torch.zeros(3, 2, 2, 8), torch.zeros(3, 2, 65, 8)
    assert counter._products("flash_attention", [query, key, key]) == ("attention", 3 * 2 * 64 * 128 * 4 * 8 / 100)


@pytest.mark.parametrize("kind", ["dense", "attribute", "token", "limoe"])
def test_the_roofline_counts_the_branches_of_a_gpu(kind):
    """Attention is one kernel, and not products and a softmax."""
    batch = BATCHES["retrieval"]().located()
    found = roofline.step_of(tiny(kind), VOCABULARY_SIZE, batch, roofline.Machine(*[100.0] * 8))
    assert found["attention"] > 0 and found["products"] > 0


def test_flops_of_a_step_leave_out_choices_without_a_slot():
    """Three in the first of two decisions, one without a slot and two not asked for: 2 x 16 x 32 multiplications and
    additions each, forward and twice backward."""
    objective, batch = make(tiny("limoe", {"placement": "all"})), BATCHES["retrieval"]().located()
    works = work_of(objective.config, batch, batch.inputs.counts, batch.candidates.counts)
    passes, parts = passes_of(objective), forward_flops(objective.config, works)
    use = objective(batch, 1).use
    taken_NME = use.taken_ME.clone()
    asked_NM = taken_NME.sum(dim=2)
    unasked_NM = torch.zeros_like(asked_NM)
    asked_NM[0, 0], unasked_NM[0, 0] = asked_NM[0, 0] + 1, 2
    found = gpu_step.flops_of(objective, batch, dataclasses.replace(use, asked_M=asked_NM, unasked_M=unasked_NM))
    assert found == sum(passes[part] * flops for part, flops in parts.items()) - 3 * 3 * 2 * (2 * 16 * 32)
