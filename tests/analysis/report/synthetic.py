"""A run folder with all files that the report reads, made of formulas: small, or as large as runs get. Names and texts try to break out of
the page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from run.config_file import dump_config, load_config
from tests.helpers.places import ROOT

HOSTILE = "</script><!--<script>\"'&<img src=x onerror=alert(1)>"
TASKS = ("cifar10", "captions", HOSTILE)
MODALITIES = ("text", "image", "video")


def write_run(
    folder: Path,
    steps: int = 400,
    log_every: int = 10,
    layers: int = 2,
    experts: int = 4,
    tasks: Sequence[str] = TASKS,
    is_sparse: bool = True,
    seed: int = 0,
) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = load_config(ROOT / "configs" / "demo.yaml", [f"steps={steps}", f"seed={seed}"])
    (folder / "config.yaml").write_text(dump_config(config))
    decisions = [f"{layer} {part}" for layer in range(layers) for part in ("attention", "ffn")]
    size = (len(decisions), experts) if is_sparse else None
    write_lines(folder / "metrics.jsonl", records(rng, steps, log_every, tasks, size))
    if is_sparse:
        write_lines(folder / "expert_use.jsonl", uses(rng, steps, decisions, experts, tasks))
    write_lines(folder / "events.jsonl", events(steps))
    fault = {
        "task": tasks[-1],
        "shard": "shard_00000.tar",
        "sample": 3,
        "offset": 512,
        "reason": f"not JPEG: {HOSTILE}",
    }
    write_lines(folder / "ledger_rank_00000.jsonl", [fault, fault | {"sample": None, "offset": None, "reason": "gone"}])
    gib = {"weights": 1.0, "gradients": 1.0, "optimizer": 2.0, "activations": 0.5, "total": 4.5}
    measured = {"weights": 1.0, "gradients": 1.0, "optimizer": 2.1, "peak": 4.75}
    of_families = {"weights": {"dense": 0.75, "experts": 0.25}, "gradients": {"dense": 0.75, "experts": 0.25}}
    families = {"predicted": of_families, "measured": of_families}
    (folder / "memory.json").write_text(json.dumps({"predicted": gib, "measured": measured, "families": families}))
    write_evaluation(folder, rng, steps, tasks)
    write_analysis(folder / "analysis", rng, steps, tasks, layers)
    return folder


def write_lines(path: Path, lines: Any) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def records(
    rng: np.random.Generator, steps: int, log_every: int, tasks: Sequence[str], size: tuple[int, int] | None
) -> Iterator[dict[str, Any]]:
    skew = rng.dirichlet(np.full(size[1], 2.0), size[0]) if size else None
    for step in range(log_every, steps + 1, log_every):
        part = step / steps
        noise = rng.normal(size=8)
        seconds = 0.5 + 0.02 * noise[0]
        record: dict[str, Any] = {
            "step": step,
            "lr": 1e-3 * min(part * 20, 1.0) * (1.02 - part),
            "grad_norm": 2 + abs(noise[1]),
            "grad_norm/dense": 1.9 + abs(noise[1]),
            "grad_norm/experts": 0.5 + 0.1 * abs(noise[2]) if size else 0.0,
            "grad_norm/routers": 0.1 if size else 0.0,
            "samples_per_s": 100 + noise[3],
            "tokens_per_s": 9000 + 300 * noise[3],
            "step_s": seconds,
            "data_wait": 0.01 * abs(noise[4]),
            "samples": 100 * log_every,
            "mfu": 0.35 + 0.01 * noise[5],
            "model_tflops_per_s": 110 + noise[5],
            "padding": 0.12 + 0.01 * noise[6],
            "memory/peak_gib": 4.75,
            "time/exchange": 0.05,
            "loss_scale_that_is_none": None,
        }
        shares = {
            "data": 0.02,
            "forward": 0.3,
            "backward": 0.5,
            "reduce": 0.08,
            "step": 0.06,
            "report": 0.01,
            "evaluate": 0.02,
        }
        record |= {f"time/{phase}": share * seconds for phase, share in shares.items()} | {"time/save": 0.01 * seconds}
        record |= {f"tokens_per_s/{name}": 3000 + 100 * noise[i] for i, name in enumerate(MODALITIES)}
        record |= {f"sent_gib/{axis}": 0.1 * i for i, axis in enumerate(("tensor", "expert", "data"), start=1)}
        for i, task in enumerate(tasks):
            record[f"loss/{task}"] = (2 + i) * np.exp(-3 * part) + 0.5 + 0.1 * rng.normal()
            record[f"accuracy/{task}"] = 0.9 * part + 0.02 * rng.normal()
            record[f"epoch/{task}"] = 10 * part
            if step % (10 * log_every) == 0:
                record[f"val/{task}/accuracy"] = 0.8 * part
                record[f"val/{task}/samples"] = 500.0
        if size and skew is not None:
            load_NE = (1 - part) / size[1] + part * skew
            load_NE[0, 0] *= 1 - part  # dies
            record["expert_load"] = np.round(load_NE, 4).tolist()
            record["dead_experts"] = int(part > 0.9)
            record["expert_load_max"] = float(load_NE.max())
            record["router_entropy"] = np.round(
                np.log(size[1]) * (1 - 0.7 * part) * np.linspace(0.5, 1, size[0]), 4
            ).tolist()
            for i, name in enumerate(MODALITIES):
                record[f"success/{name}"] = 1 - 0.05 * i * part
                record[f"success_by_decision/{name}"] = np.round(
                    1 - 0.1 * i * part * np.linspace(0, 1, size[0]), 4
                ).tolist()
        if step == steps // log_every // 2 * log_every:
            record["alarms"] = [f"0 attention: expert 0 is dead {HOSTILE}"]
        yield record


def uses(
    rng: np.random.Generator, steps: int, decisions: Sequence[str], experts: int, tasks: Sequence[str]
) -> Iterator[dict[str, Any]]:
    head = {"decisions": list(decisions), "experts": experts, "modalities": list(MODALITIES)}
    asked_NM = np.tile([100.0, 300.0, 0.0], (len(decisions), 1))
    taken_TNME = [asked_NM[..., None] * rng.dirichlet(np.full(experts, 0.5), asked_NM.shape) for _ in tasks]
    of_tasks = {
        task: {
            "taken": np.round(taken, 2).tolist(),
            "asked": asked_NM.tolist(),
            "weight": np.round(taken * 0.6, 2).tolist(),
        }
        for task, taken in zip(tasks, taken_TNME, strict=True)
    }
    number = min(200, steps)
    for part in range(1, number + 1):
        yield {"step": part * steps // number, **head, "tasks": of_tasks}


def events(steps: int) -> list[dict[str, Any]]:
    about = {
        "command": "python train.py --config configs/demo.yaml steps=400",
        "git": {"commit": "0123456789abcdef", "changed": True},
        "versions": {"torch": "2.13.0", "python": "3.11.2"},
        "hardware": {"host": "node", "cpu": HOSTILE, "cores": 16, "memory_gib": 128.0, "devices": ["H200", "H200"]},
        "ranks": {"data": 2, "tensor": 1, "expert": 2},
    }
    at = "2026-11-29T07:00:00+00:00"
    return [
        {"time": at, "step": 0, "kind": "start", "text": "starts", **about},
        {"time": at, "step": steps // 4, "kind": "note", "text": "saved"},
        {"time": at, "step": steps // 3, "kind": "resume", "text": f"continues {HOSTILE}", **about},
        {"time": at, "step": steps // 2, "kind": "skipped", "text": "gradient not finite"},
        {"time": at, "step": steps, "kind": "end", "text": "finished"},
    ]


def write_evaluation(folder: Path, rng: np.random.Generator, steps: int, tasks: Sequence[str]) -> None:
    rows = []
    for task in tasks:
        hits = rng.integers(0, 2, 200)
        metrics = {"accuracy": float(hits.mean()), "chance": 0.1, "samples": 200}
        evidence = np.stack([hits, np.ones(200)], axis=1).tolist()
        row = {
            "task": task,
            "kind": "classification",
            "digest": "d",
            "options": {},
            "figure": "accuracy",
            "floor": "chance",
        }
        rows.append(
            row | {"metrics": metrics, "interval": [0.4, 0.6], "details": {}, "evidence": evidence, "seconds": 1.0}
        )
    (folder / "evaluations").mkdir()
    content = {"version": 1, "split": "val", "step": steps, "results": rows}
    (folder / "evaluations" / f"val_step_{steps:08d}.json").write_text(json.dumps(content))


def write_analysis(folder: Path, rng: np.random.Generator, steps: int, tasks: Sequence[str], layers: int) -> None:
    (folder / "routing_maps").mkdir(parents=True)
    number = len(tasks)
    found = []
    for layer in range(min(layers, 4)):
        means = rng.normal(0.1, 0.3, (number, number))
        np.fill_diagonal(means, 1.0)
        ends = {"low": (means - 0.1).tolist(), "high": (means + 0.1).tolist()}
        matrix = {"ratio_of_means": means.tolist(), "mean_of_ratios": means.tolist(), **ends}
        found.append({"name": f"layer {layer}, ffn.down", "samples_used": 32, "unstable": [0.0] * number, **matrix})
    tree = {"step": steps, "samples": 32, "tasks": list(tasks), "layers": found}
    (folder / "interference.json").write_text(json.dumps(tree))
    Image.fromarray(rng.integers(0, 255, (96, 200, 3), dtype=np.uint8)).save(folder / "routing_maps" / "maps.png")
    frames = [Image.new("RGB", (64, 48), (40 * i, 80, 120)) for i in range(4)]
    frames[0].save(folder / "routing_maps" / "moving.gif", save_all=True, append_images=frames[1:], duration=200)
    pictures = [
        {"file": "maps.png", "title": "Patches by expert, 1 ffn", "alt": f"Two images {HOSTILE}"},
        {"file": "moving.gif", "title": "Activation by layer", "alt": "Bars that change from input to input"},
    ]
    (folder / "routing_maps" / "index.json").write_text(json.dumps({"pictures": pictures}))
    images = [picture(i) for i in range(6)]
    said = [
        {"image": image, "alt": f"sample {i}", "caption": f"a dog {HOSTILE}", "references": ["a dog", "it"]}
        for i, image in enumerate(images)
    ]
    results = [
        {"image": image, "alt": f"sample {i}", "score": 0.9 - i / 10, "right": i == 1} for i, image in enumerate(images)
    ]
    samples = {"step": steps, "captions": said, "retrievals": [{"query": f"a dog {HOSTILE}", "results": results}]}
    (folder / "samples.json").write_text(json.dumps(samples))


def picture(number: int) -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((160, 120)).convert("RGB").rotate(60 * number).save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
