"""The program as a user runs it: the real launcher, real shards, kill -9, resume, evaluation."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from run.metrics.phases import PHASES
from tests.helpers.runs import ROOT, command, environment, losses, records, train


def test_launcher_with_experts_on_two_ranks_equals_one_process(config):
    """Two ranks, EP = 2, different tasks in one step; the same steps by plain python with both micro-batches on one rank."""
    out = train(config, "name=two", "parallel.expert=2", "save_async=true", ranks=2)
    assert "finished at step 6" in out
    alone = train(config, "name=one")
    assert not [line for line in alone.splitlines() if "Warning" in line or "[INFO]" in line or "accelerator" in line]
    assert len(alone.splitlines()) < 30, alone
    for two, one in zip(losses(config, "two"), losses(config, "one"), strict=True):
        assert two.keys() == one.keys()
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=2e-3), key
    # Peak 1e-3, two steps of warm-up by thirds, then 1e-6 + 0.4995e-3 * (1 + cos(pi n / 4)) for n = 0 .. 3.
    rates = [3.3333e-4, 6.6667e-4, 1e-3, 8.5370e-4, 5.005e-4, 1.4730e-4]
    assert [record["lr"] for record in records(config, "two")] == pytest.approx(rates, rel=1e-3)
    last = records(config, "two")[-1]
    assert {"lr", "samples_per_s", "tokens_per_s", "data_wait", "expert_load", "eta_s"} <= last.keys()
    measured_alike(config)

    done = subprocess.run(
        [sys.executable, "evaluate.py", "--run", str(config.parent / "runs" / "two"), "--split", "heldout", "--limit", "16"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    by_kind = {r["kind"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert by_kind.keys() == {"classification", "masked_text", "captioning", "retrieval"}
    assert {"image_to_text_r1", "text_to_image_r10"} <= by_kind["retrieval"].keys()
    assert by_kind["captioning"]["samples"] == 16


@pytest.mark.slow
def test_candidates_shared_by_ranks_with_different_tasks_equal_one_process(config):
    """Names and words of all tasks, encoded by two ranks that exchange experts, with noise, workers and a resume in between; four
    micro-batches a step, dealt by cost."""
    names = [task["name"] for task in yaml.safe_load(config.read_text())["data"]["tasks"]]
    shared = [f"data.tasks.{name}.candidates=sharded" for name in names if name != "retrieval"]
    options = [*shared, "micro_batches=4", "model.drop_path=0.1"]
    train(config, "name=one", *options)
    train(config, "name=two", "steps=3", "optimizer.warmup_steps=2", "parallel.expert=2", *options, ranks=2)
    out = train(config, "name=two", "parallel.expert=2", "data.workers=1", *options, ranks=2)
    assert "finished at step 6" in out
    for two, one in zip(losses(config, "two"), losses(config, "one"), strict=True):
        assert two.keys() == one.keys()
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=2e-3), key
    for two, one in zip(records(config, "two"), records(config, "one"), strict=True):
        # A set is encoded once in a micro-step, and on one process once for each micro-batch that asks for it.
        work = [record["model_tflops_per_s"] * record["step_s"] for record in (two, one)]
        assert work[0] <= work[1] * (1 + 1e-6)
        assert two["sent_gib/data"] > 0


def in_phases(lines: list[dict[str, Any]], phases: tuple[str, ...] = PHASES) -> float:
    """Seconds in all records: what the machine does between two readings of the clock is most of a short step at times."""
    return sum(line[f"time/{phase}"] for line in lines for phase in phases)


def measured_alike(config: Path) -> None:
    """Phases partition a step; work is a function of the data, and not of who does it."""
    for name in ("two", "one"):
        assert in_phases(records(config, name)) == pytest.approx(
            sum(r["step_s"] for r in records(config, name)), rel=0.03
        )
    for two, one in zip(records(config, "two"), records(config, "one"), strict=True):
        for record in (two, one):
            assert record["padding"] == pytest.approx(one["padding"])
        assert two["model_tflops_per_s"] * two["step_s"] == pytest.approx(one["model_tflops_per_s"] * one["step_s"])
        assert 0 < two["time/exchange"] < two["time/forward"] + two["time/backward"]
        assert (
            two["sent_gib/data"] == pytest.approx(records(config, "two")[0]["sent_gib/data"])
            and two["sent_gib/expert"] > 0
        )
    plan = json.loads((config.parent / "runs" / "one" / "memory.json").read_text())
    for name in ("weights", "gradients", "optimizer"):
        assert plan["measured"][name] == pytest.approx(plan["predicted"][name], rel=0.01, abs=2e-6), name
    assert 0 < plan["measured"]["peak"] <= records(config, "one")[-1]["memory/peak_gib"] + 1e-6


def test_killed_and_repeated_equals_uninterrupted(config):
    """kill -9 in mid-training; the same command again continues from the last checkpoint, and every step stands once.

    Saved at once in the one run, beside the training in the other."""
    train(config, "name=whole", "steps=9")
    process = subprocess.Popen(
        command(config, "steps=9", "save_async=true"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = config.parent / "runs" / "tiny" / "metrics.jsonl"
    latest = config.parent / "runs" / "tiny" / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if latest.exists() and len(metrics.read_text().splitlines()) >= 4:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(records(config)) < 9, "the run was over before it could be killed"
    out = train(config, "steps=9", "save_async=true")
    assert "continues at step" in out
    last = config.parent / "runs" / "tiny" / "checkpoints" / "step_00000009" / "rank_00000.safetensors"
    assert last.read_bytes() == (config.parent / "runs" / "whole" / last.relative_to(latest.parents[1])).read_bytes()
    assert [r["step"] for r in records(config)] == list(range(1, 10))
    for resumed, whole in zip(losses(config), losses(config, "whole"), strict=True):
        assert resumed == whole


@pytest.mark.parametrize(
    ("origin", "device"),
    [
        pytest.param("cpu", "cpu", marks=pytest.mark.slow),
        pytest.param("cuda", "cuda", marks=pytest.mark.gpu),
        pytest.param("cpu", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_run_resumes_on_a_device(config, origin, device):
    """By the launcher, with the options that a GPU is used with. From the checkpoint of step 3 the last steps are what they were: to the
    bit on a CPU, but for sums in any order on a GPU, and but for bf16 from one to the other."""
    options = ("compile=auto", "parallel.precision=auto")
    train(config, *options, launched=True, device=origin)
    whole, checkpoints = losses(config), config.parent / "runs" / "tiny" / "checkpoints"
    shutil.rmtree(checkpoints / "step_00000006")
    (checkpoints / "latest").write_text("step_00000003", encoding="utf-8")
    assert "continues at step 3" in train(config, *options, launched=True, device=device)
    resumed, most = losses(config), {("cpu", "cpu"): 0.0, ("cuda", "cuda"): 1e-2}.get((origin, device), 0.1)
    assert len(resumed) == len(whole) == 6 and resumed[:3] == whole[:3]
    for one, other in zip(resumed[3:], whole[3:], strict=True):
        assert one == pytest.approx(other, rel=most, abs=0)


@pytest.mark.slow
def test_a_signal_saves_and_exits_with_its_own_code(config):
    """To all processes that there are, as batch systems, `timeout` and terminals send it: workers and wandb's helper get it too."""
    process = subprocess.Popen(
        command(config, "steps=500", "save_every=400", "save_async=true", "data.workers=1", "tracking.wandb=offline"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            os.killpg(process.pid, signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 85, rest
    step = records(config)[-1]["step"]
    assert (config.parent / "runs" / "tiny" / "checkpoints" / "latest").read_text() == f"step_{step:08d}"


@pytest.mark.slow
def test_worker_processes_change_nothing(config):
    train(config, "name=none", "steps=3")
    train(config, "name=two", "steps=3", "data.workers=2")
    assert losses(config, "none") == losses(config, "two")


@pytest.mark.slow
def test_another_definition_under_the_same_name_is_refused(config):
    train(config, "steps=3")
    out = train(config, "steps=3", "model.depth=4", expect=2)
    assert "was started with model.depth=2, now 4" in out
    assert "finished" in train(config, "steps=4", "log_every=2")  # reporting and length may change


def test_missing_data_is_one_line(config):
    out = train(config, "data.tasks.shapes.path=nowhere", expect=2)
    assert "nowhere" in out and "Traceback" not in out


@pytest.mark.slow
def test_wandb_offline_keeps_its_id(config):
    train(config, "steps=3", "tracking.wandb=offline")
    train(config, "steps=6", "tracking.wandb=offline")
    folder = config.parent / "runs" / "tiny"
    run_id = json.loads((folder / "wandb_run.json").read_text())["id"]
    segments = list((folder / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(segments) == 2
    assert all(any(segment.glob("*.wandb")) for segment in segments)


@pytest.mark.slow
def test_a_profile_of_two_ranks_opens_and_tells_of_their_collectives(config):
    out = train(
        config, "parallel.expert=2", "steps=4", "evaluate={every: 2, limit: 8}", "tracking.peak=measured",
        "profile={steps: [2, 3]}", ranks=2,
    )  # fmt: skip
    folder = config.parent / "runs" / "tiny" / "profile"
    assert out.count("profile of steps 2 to 3 in") == 1 and "MFU of a measured peak of" in out
    for rank in (0, 1):
        table = json.loads((folder / f"operators_rank_{rank:05d}.json").read_text())
        assert any("all_to_all" in row["name"] or "alltoall" in row["name"] for row in table["collectives"]), table
        assert table["operators"][0]["seconds"] >= table["operators"][-1]["seconds"] > 0
        events = json.loads(gzip.decompress((folder / f"trace_rank_{rank:05d}.json.gz").read_bytes()))["traceEvents"]
        named = [event["name"] for event in events if event["ph"] == "X"]
        assert named.count("phase step") == 2 and named.count("phase forward") == 2
    lines = records(config)
    assert all(0 < line["mfu"] < 1 for line in lines)
    assert max(line["time/evaluate"] for line in lines[::2]) < min(line["time/evaluate"] for line in lines[1::2]) / 10
    steps = tuple(phase for phase in PHASES if phase != "evaluate")
    assert in_phases(lines, steps) == pytest.approx(sum(line["step_s"] for line in lines), rel=0.03)


LIMOE = "model.experts={preset: limoe, num_experts: 4}"


@pytest.mark.slow
def test_limoe_reports_its_routing(config):
    """Whole networks as experts on two ranks."""
    train(config, "name=limoe", LIMOE, "parallel.expert=2", "steps=3", ranks=2)
    last = records(config, "limoe")[-1]
    assert {"success/text", "success/image", "auxiliary/importance", "auxiliary/global_text"} <= last.keys()
    assert 0 < last["success/text"] <= 1 and len(last["expert_load"]) == 1


@pytest.mark.slow
def test_a_run_serves_as_a_start(config):
    """A second run takes the weights, freezes a part and tunes the rest."""
    train(config, "name=limoe", LIMOE, "steps=3")
    start = config.parent / "runs" / "limoe"
    options = (LIMOE, "steps=3", f"init={start}")
    train(config, "name=tuned", *options, "optimizer.frozen=['tower.embedding.*']")
    first = losses(config, "tuned")[0]
    fresh = losses(config, "limoe")[0]
    assert any(abs(first[key] - fresh[key]) > 1e-6 for key in first.keys() & fresh.keys())
    out = train(config, "name=none", *options, "optimizer.frozen=['nothing.*']", expect=2)
    assert "matches no parameter" in out and "Traceback" not in out


@pytest.mark.slow
def test_rows_cut_over_tensor_ranks_train_as_one_process_does(config):
    """With replica checks every second step, activations kept selectively."""
    train(config, "parallel.tensor=1", "name=alone")
    options = (
        "parallel.tensor=2",
        "parallel.sequence=true",
        "model.activation_checkpointing=selective",
        "check_every=2",
    )
    train(config, *options, "name=cut", ranks=2)
    alone, cut = losses(config, "alone"), losses(config, "cut")
    assert len(alone) == len(cut) == 6
    for expected, got in zip(alone, cut, strict=True):
        assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_damaged_data_is_listed_counted_and_passed_by_and_workers_may_change(config):
    raw = yaml.safe_load(config.read_text())
    shapes = Path(raw["data"]["tasks"][0]["path"])
    copy = config.parent / "shapes"
    shutil.copytree(shapes, copy)
    (tar,) = copy.glob("train-*.tar")
    tar.write_bytes(tar.read_bytes()[:-30_000])  # a part of the 48 samples
    path = f"data.tasks.shapes.path={copy}"
    train(config, path, "steps=3", "data.max_bad_fraction=1.0")
    train(config, path, "steps=12", "data.max_bad_fraction=1.0", "data.workers=1", "data.cache_gib=1")
    found = records(config)
    assert [record["step"] for record in found] == list(range(1, 13))
    assert sum(record.get("faults/shapes", 0) for record in found) == sum(record["faults"] for record in found) > 0
    assert found[-1]["bad_shards"] == 1 and found[-1]["epoch/shapes"] > 0 and found[-1]["tokens/shapes"] >= 0
    lines = (config.parent / "runs" / "tiny" / "ledger_rank_00000.jsonl").read_text().splitlines()
    (fault,) = map(json.loads, lines)
    assert (fault["task"], fault["shard"], fault["sample"]) == ("shapes", tar.name, None) and "cut off" in fault[
        "reason"
    ]
    out = train(
        config, "name=strict", path, "steps=9999", "data.tasks.shapes.sampling_weight=1000", "micro_batches=8", expect=2
    )
    assert (
        "samples were bad; more than data.max_bad_fraction=0.001 allows; the last: " in out and "Traceback" not in out
    )
