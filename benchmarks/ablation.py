"""Dense, the routers of Uni-Perceiver-MoE and LIMoE on the demo's world: a table like the paper's Table 3 (`make ablation`).

Every variant sees the same samples in the same order and has the same width, depth and schedule; experts sit in the same
layers. Runs are single processes without DeepSpeed, so that two cores do two at a time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from data.stream.share import Share
from data.stream.source import open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels
from evaluation import EVALUATORS, Evaluation
from model.initialise import initialise
from model.noise import derive
from model.objective import Objective
from parallel.engine import parameter_groups
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from run.command_line import Several
from run.config import RunConfig
from run.config_file import load_config

ROOT = Path(__file__).parents[1]
VARIANTS: dict[str, str] = {
    "dense": "{placement: none}",
    "task-specific": "{router: task_specific, num_experts: 5, top_k: 1, placement: odd}",
    "token": "{preset: uni_perceiver_moe_token, num_experts: 4}",
    "context": "{preset: uni_perceiver_moe_token, num_experts: 4, router: context}",
    "modality": "{preset: uni_perceiver_moe, num_experts: 4, router: modality}",
    "task": "{preset: uni_perceiver_moe, num_experts: 4, router: task}",
    "attribute": "{preset: uni_perceiver_moe, num_experts: 4}",
    "LIMoE": "{preset: limoe, num_experts: 4, placement: odd, auxiliary: {experts_text: 2.0, experts_visual: 3.0}}",
}
FIGURES = {
    "shapes": "accuracy",
    "clips": "accuracy",
    "sentences": "accuracy",
    "captions": "cider",
    "retrieval": "image_to_text_r1",
}
"""What the table shows of each task."""


def run_variant(name: str, seed: int, steps: int, config: str, limit: int) -> dict[str, Any]:
    """Train and evaluate one variant; figures by task, parameters and seconds per step."""
    torch.set_num_threads(1)
    overrides = [f"model.experts={VARIANTS[name]}", f"steps={steps}", f"seed={seed}", "parallel.expert=1"]
    run = load_config(ROOT / config, [*overrides, "data.workers=0", f"optimizer.warmup_steps={steps // 10}"])
    pixels = Pixels(run.model.image_size, run.model.patch)
    opened = open_data(run.data, pixels, run.seed)
    vocabulary, sources = opened.vocabulary, opened.sources
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels("torch"))
    initialise(objective, run.seed)
    start = time.perf_counter()
    train(objective, run, sources)
    seconds = (time.perf_counter() - start) / steps

    held_out = tuple(dataclasses.replace(task, split="heldout") for task in run.data.tasks)
    tests = open_data(dataclasses.replace(run.data, tasks=held_out), pixels, run.seed, vocabulary).sources
    objective.eval()
    figures = {}
    for source, training in zip(tests, sources, strict=True):
        metrics = (
            EVALUATORS[source.task.config.kind]
            .evaluate(Evaluation(objective, source, training, "cpu", 64, limit))
            .metrics
        )
        figures[source.name] = metrics[FIGURES[source.name]]
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    return {"variant": name, "seed": seed, **figures, "parameters": parameters, "step_s": seconds}


def train(objective: Objective, run: RunConfig, sources: list) -> None:
    """The training loop of train.py without ranks, checkpoints and reports."""
    schedule = schedule_of(run.data, run.micro_batches, run.seed, sources)
    stream = training_stream(sources, schedule, Share(), 0, (0,) * len(sources), 0)
    options = run.optimizer
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(objective, options, Mesh())
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps)
    for step in range(run.steps):
        for _ in range(run.micro_batches):
            micro = next(stream)
            losses = objective(micro.batch, derive(run.seed, "noise", step, micro.assignment.number))
            (losses.total / run.micro_batches).backward()
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate(step, run.steps)
        torch.nn.utils.clip_grad_norm_(objective.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # as DeepSpeed does: an expert without tokens still decays


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, one row per variant."""
    lines = [
        "| variant | parameters | "
        + " | ".join(f"{task} {figure}" for task, figure in FIGURES.items())
        + " | step / dense |",
        "|" + "---|" * (len(FIGURES) + 3),
    ]
    times = {name: [r["step_s"] for r in results if r["variant"] == name] for name in VARIANTS}
    for name in VARIANTS:
        mine = [result for result in results if result["variant"] == name]
        if not mine:
            continue
        cells = [_mean([result[task] for result in mine]) for task in FIGURES]
        ratio = f"{statistics.median(times[name]) / statistics.median(times['dense']):.2f}" if times["dense"] else "-"
        lines.append(f"| {name} | {mine[0]['parameters'] / 1e6:.2f} M | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/ablation.yaml", help="run configuration (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", action=Several, choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--limit", type=int, default=256, help="held-out samples of each task")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation.jsonl"), help="one JSON line a run")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results = []
    jobs = [(name, seed) for seed in range(options.seeds) for name in options.variants]
    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(options.processes, mp_context=context) as pool,
        options.out.open("w", encoding="utf-8") as file,
    ):
        waiting = [
            pool.submit(run_variant, name, seed, options.steps, options.config, options.limit) for name, seed in jobs
        ]
        for done in concurrent.futures.as_completed(waiting):
            result = done.result()
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
            elapsed = time.perf_counter() - start
            left = elapsed / len(results) * (len(jobs) - len(results))
            figures = "  ".join(f"{task} {result[task]:.3f}" for task in FIGURES)
            print(
                f"{len(results):>3}/{len(jobs)}  {result['variant']:<14} seed {result['seed']}  {figures}  "
                f"eta {left / 60:.0f} min",
                file=sys.stderr,
                flush=True,
            )
    print(f"{options.steps} steps, {options.seeds} seed(s), held-out combinations, {time.perf_counter() - start:.0f} s")
    print(table(results))


if __name__ == "__main__":
    main()
