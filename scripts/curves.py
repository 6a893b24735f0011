"""The first steps of a training, compared with those that are written down.

    python scripts/curves.py            # compare; exit code 1 where a loss differs
    python scripts/curves.py --write    # write them anew, after a change that is meant to change them

Two runs of 30 steps in one process: configs/demo.yaml, and the same with LIMoE's routing. A change that keeps behaviour keeps the curves.
Losses of another processor may differ in their last digits, and more with every step: TOLERANCE is for that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden" / "curves"
STEPS = 30
TOLERANCE = 5e-5
"""Relative. Two threads in place of one differed by 3e-6 at most; training without weight decay differs by 1e-4,
one step less of warm-up by 1e-2, another clipping by 3e-3."""
VARIANTS = {
    "demo": [],
    "limoe": ["model.experts={preset: limoe, num_experts: 4}"],
}
Curve = dict[int, dict[str, float]]
"""Step -> loss by task."""


def trained(name: str, folder: Path) -> Curve:
    """Train a variant and read its losses."""
    options = [
        f"name={name}", f"runs={folder}", f"steps={STEPS}", "optimizer.warmup_steps=10", "log_every=1", "save_every=30",
        "parallel.expert=1", "data.workers=0", "tracking.wandb=disabled", *VARIANTS[name],
    ]  # fmt: skip
    command = [sys.executable, "train.py", "--config", "configs/demo.yaml", *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {r["step"]: {key[5:]: value for key, value in r.items() if key.startswith("loss/")} for r in records}


def written(curve: Curve) -> str:
    """A line for each step and task: step, task, loss to six digits."""
    return "".join(f"{step} {task} {loss:.6g}\n" for step, losses in curve.items() for task, loss in losses.items())


def read(text: str) -> Curve:
    curve: Curve = {}
    for line in text.splitlines():
        step, task, loss = line.split()
        curve.setdefault(int(step), {})[task] = float(loss)
    return curve


def difference(expected: Curve, found: Curve) -> tuple[float, str]:
    """(largest relative difference, what is wrong: the first step that differs by more than TOLERANCE, or empty)."""
    largest, wrong = 0.0, ""
    for step in sorted(expected.keys() | found.keys()):
        old, new = expected.get(step, {}), found.get(step, {})
        if old.keys() != new.keys():
            return largest, wrong or f"step {step}: losses of {sorted(new)}, expected of {sorted(old)}"
        for task, loss in old.items():
            relative = abs(new[task] - loss) / max(abs(loss), 1e-9)
            largest = max(largest, relative)
            if relative > TOLERANCE and not wrong:
                wrong = f"step {step}, {task}: {new[task]:.6g}, expected {loss:.6g} ({relative:.1e})"
    return largest, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the curves in place of comparing them")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = False
    # As `make demo` has it; complete data sets are left alone.
    subprocess.run([sys.executable, "-m", "data.synthetic", "--out", "data_demo"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            curve, path = trained(variant, Path(folder)), FOLDER / f"{variant}.txt"
            if arguments.write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(written(curve), encoding="utf-8")
                print(f"{variant}: {len(curve)} steps written to {path.relative_to(ROOT)}")
                continue
            largest, wrong = difference(read(path.read_text(encoding="utf-8")), curve)
            failed |= bool(wrong)
            print(f"{variant}: {wrong or f'{len(curve)} steps as written down'}; largest difference {largest:.1e}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
