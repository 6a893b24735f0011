"""What tuning gives on small real data: every way of tuning x every data set x some base runs, and a table.

    python evaluate.py --run RUN --suite tuning                                   before tuning, of each base
    python evaluate.py --run RUN --suite tuning --probe linear --tasks cifar10 flowers fights sst2 mrpc
    python -m benchmarks.tuning --bases dense=runs/real_small_dense MoE=runs/real_small --out runs/tuning

Each training is `train.py` with a recipe of configs/recipes/small and ends with an evaluation of the split `val`. It is left out where its
figures are there already, so the same command goes on where it was stopped. Figures and intervals are those of the kept evaluations.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from run.command_line import Several

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "configs" / "recipes" / "small"


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of tuning: its name in the table, overrides of the recipe (TASK: the task's name), steps."""

    name: str
    overrides: tuple[str, ...]
    steps: int


PROMPTS = (
    "optimizer.tune=prompts",
    "model.prompts={length: 10}",
    "optimizer.lr=1e-2",
    "optimizer.weight_decay=0",
    "optimizer.layer_decay=1",
)
WAYS = (
    Way("prompts, 1 %", (*PROMPTS, "data.tasks.TASK.fraction=0.01"), 60),
    Way("fine-tuned, 10 %", ("data.tasks.TASK.fraction=0.1",), 120),
    Way("fine-tuned, 100 %", (), 300),
)
SETS = ("cifar10", "flowers", "fights", "retrieval", "captions", "sst2", "mrpc")


def kept_of(base: str, task: str, way: Way, out: Path) -> Path:
    """Where the figures of a training are."""
    name = f"{base}_{task}_{way.name}".replace(" ", "").replace(",", "_").replace("%", "")
    return out / name / "evaluations" / f"val_step_{way.steps:08d}.json"


def tune(base: tuple[str, str], task: str, way: Way, data: Path, out: Path) -> None:
    """Train and evaluate, if that was not done. Raises RuntimeError with the end of what the training said."""
    kept = kept_of(base[0], task, way, out)
    if kept.exists():
        return
    path = data / ("flickr8k" if task in ("retrieval", "captions") else task)
    command = [
        sys.executable, str(ROOT / "train.py"), f"--config={RECIPES / task}.yaml", f"init={base[1]}", f"name={kept.parents[1].name}",
        f"runs={out}", f"steps={way.steps}", f"evaluate.every={way.steps}", f"log_every={min(30, way.steps)}", f"save_every={way.steps}",
        f"data.tasks.{task}.path={path}", "tracking.wandb=disabled", *(override.replace("TASK", task) for override in way.overrides),
    ]  # fmt: skip
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=threads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-2000:]}")


def table(bases: list[tuple[str, str]], sets: list[str], out: Path) -> str:
    """Rows: data sets and bases; columns: before tuning, a linear probe, and each way of tuning."""
    titles = ["data, figure", "base", "zero-shot", "linear probe", *(way.name for way in WAYS)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for task in sets:
        for name, run in bases:
            before = _newest(Path(run), "tuning_step_*.json").get(task)
            probe = _newest(Path(run), "tuning_probes_step_*.json").get(f"{task}, linear probe")
            rows = [before, probe, *(_rows(kept_of(name, task, way, out)).get(task) for way in WAYS)]
            figure = next((row["figure"] for row in rows if row), "")
            lines.append(f"| {task}, {figure} | {name} | {' | '.join(map(_cell, rows))} |")
    return "\n".join(lines)


def _newest(run: Path, pattern: str) -> dict[str, Any]:
    """Rows by task of the last of the kept files."""
    found = sorted((run / "evaluations").glob(pattern))
    return _rows(found[-1]) if found else {}


def _rows(kept: Path) -> dict[str, Any]:
    if not kept.exists():
        return {}
    return {row["task"]: row for row in json.loads(kept.read_text(encoding="utf-8"))["results"]}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["interval"]
    return f"{row['metrics'][row['figure']]:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", action="extend", required=True, metavar="NAME=RUN", help="trained runs")
    parser.add_argument("--sets", nargs="+", action=Several, choices=SETS, default=SETS)
    parser.add_argument(
        "--data", type=Path, default=Path("data_real"), help="folder of the prepared data sets (default: data_real)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tuning"), help="where the runs go (default: runs/tuning)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: 2)")
    arguments = parser.parse_args()
    bases = [(name, str(Path(run).resolve())) for name, _, run in (base.partition("=") for base in arguments.bases)]
    data, out = arguments.data.resolve(), arguments.out.resolve()
    wanted = [(base, task, way) for task in arguments.sets for way in WAYS for base in bases]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [pool.submit(tune, base, task, way, data, out) for base, task, way in wanted]
        for (base, task, way), job in zip(wanted, jobs, strict=True):
            try:
                job.result()
                print(base[0], task, way.name, "done", file=sys.stderr, flush=True)
            except RuntimeError as error:
                print(base[0], task, way.name, f"failed: {error}", file=sys.stderr, flush=True)
    print(table(bases, list(arguments.sets), out))


if __name__ == "__main__":
    main()
