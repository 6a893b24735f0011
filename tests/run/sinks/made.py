"""Made records of two tasks, sparse and dense, and what metrics.jsonl says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run.config import RunConfig
from run.config_file import load_config
from run.metrics.expert_use import decision_names
from run.metrics.meter import Record
from run.sinks.json_lines import JsonLines

DENSE = "model.experts.placement=none"


def loaded(config: Path, *overrides: str) -> RunConfig:
    """Of ten steps, with its folder."""
    run = load_config(config, ["steps=10", "optimizer.warmup_steps=1", *overrides])
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def record(run: RunConfig, step: int, luck: float = 0.0) -> Record:
    """luck: so that two tries of a step differ. Even steps have no captions, step 4 has a loss that is no number, step 6 an alarm and an
    evaluation."""
    made: dict[str, Any] = {
        "step": step,
        "lr": 0.1 * step,
        "grad_norm": 2.5 + luck,
        "grad_norm/dense": 1.5,
        "samples_per_s": 40.0,
        "tokens_per_s": 400.0,
        "tokens_per_s/image": 300.0,
        "step_s": 0.25,
        "time/data": 0.125,
        "data_wait": 0.5,
        "samples": 20,
        "faults": 0,
        "bad_shards": 1,
        "lost_bytes": 600,
        "skipped_steps": 1,
        "eta_s": 2.5,
        "mfu": 0.375,
        "model_tflops_per_s": 1.25,
        "memory/peak_gib": 1.5,
        "loss/shapes": float("nan") if step == 4 else 1.0 / step + luck,
        "tokens/shapes": 150,
        "tokens/captions": 50 * (step % 2),
    }
    if step % 2:
        made["loss/captions"] = 3.0 / step
    if step == 6:
        made |= {"val/shapes/accuracy": 0.625 + luck, "val/captions/CIDEr-D": 1.125, "evaluation_s": 0.5}
    rows, experts = len(decision_names(run.model)), run.model.experts.num_experts
    if rows:
        shares = [
            [(row + 1) / 10 if expert == step % experts else 0.125 for expert in range(experts)] for row in range(rows)
        ]
        made |= {
            "expert_load": shares,
            "expert_load_max": rows / 10,
            "router_entropy": [0.25 * (row + 1) for row in range(rows)],
            "success/image": 0.875,
            "success_by_decision/image": [0.75] * rows,
        }
        if step == 6:
            made["alarms"] = [
                "dead experts at 1 ffn: 0, 3",
                "routing has collapsed at 1 ffn: one expert took everything & more of it",
            ]
    return made


def with_metrics(run: RunConfig, records: Sequence[Record], start_step: int = 0) -> list[Record]:
    """All lines of metrics.jsonl, with these written by a start that goes on from there."""
    path = run.folder / "metrics.jsonl"
    sink = JsonLines(path, start_step)
    for made in records:
        sink.write(made)
    sink.close()
    return [json.loads(line) for line in path.read_text().splitlines()]
