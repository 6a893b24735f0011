"""Every command of README and documents is run as written, one after another, in a copy of the repository.

A training is stopped by a signal at its first line of progress; saving and 85 are then its good end. What cannot run here is told with the
reason. Commands of docs/results.md take minutes to hours and are read by tests/test_readme.py alone.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from data.decode.video import encode_mp4
from data.shards import DatasetInfo, SplitInfo, write_info, write_shards
from data.text.tokenizer import Tokenizer
from run.errors import EXIT_STOPPED
from tests.golden.reference import public_state
from tests.helpers.places import ROOT
from tests.helpers.runs import environment

PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in (
            "start",
            "data",
            "training",
            "tracking",
            "evaluation",
            "analysis",
            "use",
            "export",
            "adding",
            "slurm",
            "kubernetes",
            "stores",
            "dashboards",
        )
    ),
]
START = re.compile(r"(\w+=\S+ )?(deepspeed|python|make|docker|printf|source) ")
NOT_HERE = {
    "make demo": "takes ten minutes; CI's demo and tests/test_train.py run what it calls",
    "make test": "is what runs this",
    "TORCH_INDEX_URL=": "needs the index of CUDA wheels",
    "docker ": "needs a Docker engine; `make image-check` builds the image without one",
    "deepspeed --hostfile hosts ": "needs two machines; tests/test_launch.py starts two nodes on one",
    "source ": "only for shells",
    "python evaluate.py --compare ": "needs two runs that were evaluated; tests/evaluation/test_kept.py compares two",
    "python -m analysis.report --run runs/dense ": "needs two runs; tests/analysis/report compares some",
    "python -m analysis.report --run runs/demo --follow": "goes on until the run ends; tests/analysis/report follows one",
    "python -m model.exchange.export --run runs/clip_b32 ": "needs a run of two towers; tests/model/exchange/export makes one",
    "python -m clusters store ": "needs an object store; tests/clusters/store runs one",
    "python -m clusters.dashboards.wandb_report --entity ": "needs an account of wandb",
    "python -m pytest -m slow tests/clusters/store": "trains for minutes; `make test-slow` runs it",
    "python evaluate.py --run runs/real_small ": "needs a run on real data",
}
"""Beginnings of commands that are not run, with the reason."""


def commands() -> list[str]:
    """Of code blocks, in their order, each once."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            lines = [re.split(r"\s+#", line)[0].strip() for line in block.splitlines()]
            found += [line for line in lines if START.match(line)]
    return list(dict.fromkeys(found))


def picture(seed: int, format_: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format_)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    """The repository with what a reader of the pages would have beside it, all of it small."""
    folder = tmp_path_factory.mktemp("reader") / "repository"
    shutil.copytree(
        ROOT, folder, ignore=shutil.ignore_patterns(".*", "runs", "outputs", "site", "data_*", "__pycache__")
    )
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (folder / "pets" / split / name).mkdir(parents=True)
            for seed in range(40):
                (folder / "pets" / split / name / f"{seed}.jpg").write_bytes(
                    picture(1000 * number + seed + (split == "val") * 500)
                )
    (folder / "pictures").mkdir()
    for seed in range(3):
        (folder / "pictures" / f"{seed}.jpg").write_bytes(picture(seed))
    (folder / "clip.mp4").write_bytes(encode_mp4(np.zeros((4, 32, 32, 3), np.uint8), fps=4))
    tokens = sorted({*Tokenizer.load().encode("a red circle cat dog"), 49407})
    for name, kind, classes in (("flickr8k", "image_caption", ()), ("cifar10", "image_class", ("cat", "dog"))):
        label = {"cls": 1} if classes else {"json": {"captions": ["a red circle"]}}
        samples = [{"__key__": f"{name}{i}", "jpg": picture(7 * i + len(name)), **label} for i in range(6)]
        out = folder / "datasets" / name
        out.mkdir(parents=True)
        write_shards(out, "train", samples, 6)
        write_info(
            out, DatasetInfo(kind=kind, classes=classes, token_ids=tuple(tokens), splits={"train": SplitInfo(6, 1)})
        )
    for number in range(13):
        samples = [{"__key__": f"{number}-{i}", "jpg": picture(90 * number + i), "txt": "a cat"} for i in range(2)]
        write_shards(folder / "foreign", f"part{number}", samples, 2)
        (folder / "foreign" / f"part{number}-000000.tar").rename(folder / "foreign" / f"shard-{number:03d}.tar")
    for index in (folder / "foreign").glob("*.json"):
        index.unlink()
    torch.save(public_state("compact/dense"), folder / "uni_perceiver.pth")
    return folder


def run(command: str, folder: Path) -> tuple[int, str]:
    """(exit code, output) of a command as a shell runs it; a training is asked to stop at its first progress."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment() | {"PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    lines = []
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step ") and not any(earlier.startswith("step ") for earlier in lines[:-1]):
                ranks = [
                    p
                    for p in psutil.Process(process.pid).children(recursive=True)
                    if "train.py" in " ".join(p.cmdline())
                ]
                ranks = [rank for rank in ranks if "deepspeed" not in " ".join(rank.cmdline())] or [
                    psutil.Process(process.pid)
                ]
                ranks[0].send_signal(signal.SIGTERM)
        return process.wait(timeout=60), "".join(lines)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_the_command_does_what_the_page_says(command, sandbox):
    for beginning, reason in NOT_HERE.items():
        if command.startswith(beginning):
            pytest.skip(f"{command}: {reason}")
    code, output = run(command, sandbox)
    trains = "train.py --config" in command and "--describe" not in command and "--plan" not in command
    assert code in ((0, EXIT_STOPPED) if trains else (0,)), output[-3000:]
    assert not trains or "step " in output
    if "evaluate.py" in command and "--suite" not in command:
        assert '"figure"' in output


def test_the_pages_have_commands_of_every_kind():
    found = commands()
    assert len(found) > 25 and {"train.py", "evaluate.py", "data.prepare", "data.inspect", "make"} <= {
        part for command in found for part in re.findall(r"train\.py|evaluate\.py|data\.\w+|make", command)
    }
    assert all(any(command.startswith(beginning) for command in found) for beginning in NOT_HERE)


def test_a_multi_node_command_comes_with_its_hostfile():
    """Without the file DeepSpeed trains on the first machine alone, and says so in a warning only."""
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"deepspeed --hostfile (\S+)", text):
            assert re.search(rf"printf .* > {name}\n", text), f"{page.name} does not say how {name} is made"
