"""The demo from start to end: write the made world, train on two ranks with the deepspeed launcher, evaluate on
combinations of colour and shape that training never saw, look inside and write the report. Called by `make demo`; repeating it
resumes or re-evaluates."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, capture: bool = False) -> str:
    print("+", " ".join(command).replace(sys.executable, "python").replace(f"{ROOT}/", ""), flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(f"demo: that command failed with exit code {done.returncode}")
    return done.stdout or ""


def ranks() -> int:
    """Two ranks on a CPU; with GPUs no more ranks than there are of them."""
    return min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train.py")
    overrides = parser.parse_args().overrides
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    count = ranks()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it has found no other
    start = time.perf_counter()
    bin_folder = Path(sys.executable).parent
    run(sys.executable, "-m", "data.synthetic", "--out", "data_demo")  # leaves complete data sets alone
    run(
        str(bin_folder / "deepspeed"),
        "-q",  # the launcher tells errors alone
        f"--num_gpus={count}",
        "train.py",
        "--config=configs/demo.yaml",
        f"parallel.expert={count}",
        *overrides,
    )
    output = run(sys.executable, "evaluate.py", "--run=runs/demo", "--split=heldout", "--threads=2", capture=True)
    print("\nheld-out combinations (never in training):")
    for line in output.splitlines():
        record = json.loads(line)
        figure, floor = record["figure"], record["floor"]
        print(f"  {record['task']:<10} {figure:<17} {record[figure]:6.3f}   untrained {record[floor]:6.3f}")
    print()
    network = {"experts": ["--split=val"], "interference": ["--samples=50"], "routing_maps": ["--split=val"]}
    for what, words in network.items():
        command = (sys.executable, "-m", f"analysis.{what}", "--run=runs/demo", "--threads=2", *words)
        run(*command, capture=what != "routing_maps")  # the page shows their tables
    for what in ("samples", "report"):
        run(sys.executable, "-m", f"analysis.{what}", "--run=runs/demo")
    print(
        f"""
done in {time.perf_counter() - start:.0f} s. Results lie in runs/demo: metrics.jsonl, config.yaml, checkpoints/, wandb/ (offline).
One page shows them: {ROOT / "runs" / "demo" / "analysis" / "report.html"}
To try next:
  python evaluate.py --run runs/demo --split val                            seen combinations, new pictures
  python train.py --config configs/demo.yaml name=dense parallel.expert=1 model.experts.placement=none
                                                                            the dense baseline, one process
  deepspeed --num_gpus 2 train.py --config configs/demo.yaml name=tokens model.experts.router=token
                                                                            tokens travel to the experts instead of weights"""
    )


if __name__ == "__main__":
    main()
