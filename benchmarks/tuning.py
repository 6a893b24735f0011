"""What tuning gives on small real data: every way of tuning x every data set x some base runs, and a table.

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
import time
from pathlib import Path
from typing import Any

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


def tuned(base: tuple[str, str], task: str, way: Way, data: Path, out: Path) -> dict[str, Any]:
    """Train and evaluate, or read what is there. Raises RuntimeError with the end of what the training said."""
    name = f"{base[0]}_{task}_{way.name}".replace(" ", "").replace(",", "_").replace("%", "")
    kept = out / name / "evaluations" / f"val_step_{way.steps:08d}.json"
    seconds = 0.0
    if not kept.exists():
        overrides = [override.replace("TASK", task) for override in way.overrides]
        path = data / ("flickr8k" if task in ("retrieval", "captions") else task)
        command = [
            sys.executable, str(ROOT / "train.py"), f"--config={RECIPES / task}.yaml", f"init={base[1]}", f"name={name}", f"runs={out}",
            f"steps={way.steps}", f"evaluate.every={way.steps}", "log_every=" + str(min(30, way.steps)), f"save_every={way.steps}",
            f"data.tasks.{task}.path={path}", "tracking.wandb=disabled", *overrides,
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(kept.read_text(encoding="utf-8")) | {"seconds_of_all": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", required=True, metavar="NAME=RUN", help="trained runs")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument(
        "--data", type=Path, default=Path("data_real"), help="folder of the prepared data sets (default: data_real)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tuning"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: 2)")
    arguments = parser.parse_args()
    bases = [tuple(base.split("=", 1)) for base in arguments.bases]
    data, out = arguments.data.resolve(), arguments.out.resolve()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = {
            (base[0], task, way.name): pool.submit(tuned, (base[0], str(Path(base[1]).resolve())), task, way, data, out)
            for task in arguments.sets
            for way in WAYS
            for base in bases
        }
        for key, job in jobs.items():
            try:
                print(*key, _figure(job.result()), flush=True)
            except RuntimeError as error:
                print(*key, f"failed: {error}", flush=True)


def _figure(kept: dict[str, Any]) -> str:
    (row,) = kept["results"]
    low, high = row["interval"]
    return f"{row['figure']} {row['metrics'][row['figure']]:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
