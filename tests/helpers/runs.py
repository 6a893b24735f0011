"""Training commands as a user types them, and what they leave behind. Fixtures: tests/conftest.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.helpers.places import ROOT

LAUNCHER = Path(sys.executable).with_name("deepspeed")
TINY = {
    "log_every": 1,
    "save_every": 3,
    "steps": 6,
    "threads": 1,
    "model": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "ffn": 64,
        "max_frames": 4,
        "max_text": 32,
        "experts": {"num_experts": 4},
    },
    "optimizer": {"warmup_steps": 2},
    "tracking": {"wandb": "disabled"},
}


def tiny_config(world: Path, folder: Path) -> Path:
    """The configuration of a tiny run on a made world; the run lies in the folder, too."""
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    for task in raw["data"]["tasks"]:
        task["path"] = str(world / Path(task["path"]).name)
        task["batch_size"] = 4
    raw["runs"] = str(folder / "runs")
    raw["name"] = "tiny"
    raw.update({k: v for k, v in TINY.items() if k != "model"})
    raw["model"] |= TINY["model"]
    raw["parallel"] = {"deepspeed": str(ROOT / "ds_configs" / "zero1.json")}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WANDB_SILENT": "true"}


def command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = (
        [str(LAUNCHER), f"--num_gpus={ranks}", f"--master_port={29600 + os.getpid() % 300}"]
        if ranks > 1
        else [sys.executable]
    )
    return [*launcher, str(ROOT / "train.py"), f"--config={config}", *overrides]


def train(config: Path, *overrides: str, ranks: int = 1, expect: int = 0) -> str:
    done = subprocess.run(
        command(config, *overrides, ranks=ranks),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def records(config: Path, name: str = "tiny") -> list[dict]:
    return [json.loads(line) for line in (config.parent / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def losses(config: Path, name: str = "tiny") -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k.startswith("loss/") or k == "grad_norm"} for r in records(config, name)]
