"""Training commands as a user types them, and what they leave behind. Fixtures: tests/conftest.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from data.shards import DatasetInfo, ShardSet, SplitInfo, write_info, write_shard
from data.stream.source import open_data
from data.tasks.base import Pixels
from model.initialise import initialise
from model.objective import Objective
from parallel.checkpoints import Fragment, Saver
from parallel.kernels import load_kernels
from parallel.mesh import Mesh
from parallel.placement import placement_of
from run.config_file import load_config
from run.folder import write_run_files
from tests.helpers.devices import only_seeing
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


def asking_config(world: Path, folder: Path) -> Path:
    """The same with a task of sentences with a class (sst2) and one of questions about pictures (vqa); their data is in the folder."""
    shapes = ShardSet.open(world / "shapes", "val")
    about = json.dumps({"question": "what is it?", "answers": ["circle"]})
    samples: dict[str, list[dict[str, Any]]] = {
        "sst2": [{"__key__": f"{n}", "txt": f"a red circle {n}", "cls": n % 2} for n in range(6)],
        "vqa": [{"__key__": f"{n}", "png": shapes.read(0, n)["png"], "json": about, "cls": 0} for n in range(6)],
    }
    for name, kind, classes in (("sst2", "text_class", ("bad", "good")), ("vqa", "image_question", ("circle", "star"))):
        (folder / name).mkdir()
        write_shard(folder / name / "train-000000.tar", samples[name])
        split = SplitInfo(samples=6, shards=1)
        write_info(folder / name, DatasetInfo(kind=kind, classes=classes, token_ids=(), splits={"train": split}))  # type: ignore[arg-type]
    path = tiny_config(world, folder)
    raw = yaml.safe_load(path.read_text())
    kinds = {"sst2": "text_classification", "vqa": "vqa"}
    raw["data"]["tasks"] += [{"name": n, "kind": k, "path": str(folder / n), "batch_size": 2} for n, k in kinds.items()]
    path.write_text(yaml.safe_dump(raw))
    return path


def saved_run(config: Path, *overrides: str, noise: float = 0.0) -> Path:
    """The folder of a run that has not learned yet: its first weights as the checkpoint of step 3. noise: added to all weights, as those
    that start as 0 or 1 would hide mistakes."""
    run = load_config(config, overrides)
    data = open_data(run.data, Pixels(run.model.image_size, run.model.patch), run.seed)
    objective = Objective(run.model, data.vocabulary.size, Mesh(), load_kernels("torch"))
    initialise(objective, run.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    write_run_files(run, data.vocabulary)
    weights = [
        Fragment(name, placement_of(p), 0, True, {"weight": p.detach().view(-1)})
        for name, p in objective.named_parameters()
    ]
    saver = Saver(run.folder / "checkpoints", 1, False, lambda line: None)
    saver.save(3, iter(weights), {})
    saver.publish()
    return run.folder


def environment(device: str = "cuda") -> dict[str, str]:
    """device: cpu hides GPUs, cuda leaves those that the tests see."""
    return only_seeing(device) | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WANDB_SILENT": "true"}


def command(config: Path, *overrides: str, ranks: int = 1, launched: bool = False) -> list[str]:
    """launched: by DeepSpeed's launcher, as several ranks are in any case."""
    launcher = (
        [str(LAUNCHER), f"--num_gpus={ranks}", f"--master_port={29600 + os.getpid() % 300}"]
        if ranks > 1 or launched
        else [sys.executable]
    )
    return [*launcher, str(ROOT / "train.py"), f"--config={config}", *overrides]


def train(
    config: Path,
    *overrides: str,
    ranks: int = 1,
    expect: int = 0,
    launched: bool = False,
    device: str = "cuda",
    sabotage: str = "",
) -> str:
    """sabotage: what goes wrong, and where (tests/helpers/sabotage.py)."""
    words, variables = command(config, *overrides, ranks=ranks, launched=launched), environment(device)
    if sabotage:
        words = [
            str(ROOT / "tests" / "helpers" / "sabotage.py") if word.endswith("train.py") else word for word in words
        ]
        variables |= {"SABOTAGE": sabotage, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=variables,
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
