"""Exports are loaded by transformers, offline, in an environment that has torch, transformers and safetensors alone.

FRESH_PYTHON names the interpreter of such an environment, to save making one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.exchange.export.__main__ import main
from model.exchange.export.modeling_sparse_generalist import SparseGeneralistModel
from tests.helpers.places import ROOT
from tests.helpers.runs import saved_run, tiny_config
from tests.model.exchange.export.test_round_trip import KINDS

PACKAGES = ("transformers==5.24.0", "safetensors==0.8.0")
SCRIPT = """
import importlib.util, json, sys
import torch
from transformers import AutoModel, AutoProcessor
from safetensors.torch import load_file, save_file

there = [name for name in ("deepspeed", "megatron", "ftfy", "PIL", "open_clip") if importlib.util.find_spec(name)]
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
pixels = load_file(sys.argv[2])["pixels"]
with torch.no_grad():
    features = {"image": model.encode_image(pixels), "text": model.encode_text(["a red circle", "the blue star"]),
                "video": model.encode_video(pixels[:, None].repeat(1, 4, 1, 1, 1)),
                "classes": model.classify(pixels, ["red circle", "blue star"])}
save_file(features, sys.argv[3])
tokens = processor(text="a red circle")["tokens"].tolist()
print(json.dumps({"there": there, "captions": model.caption(pixels, max_words=4), "tokens": tokens}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """Of a fresh environment."""
    given = os.environ.get("FRESH_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    fresh = str(folder / "bin" / "python")
    install = [fresh, "-m", "pip", "install", "-q", f"torch=={torch.__version__}", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, timeout=1500, check=False)
    if done.returncode:
        pytest.skip(f"no fresh environment can be made here: {done.stderr.strip().splitlines()[-1]}")
    return fresh


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "attribute", "token", "limoe", "two_towers", "prompts"])
def test_transformers_alone_gives_the_same(python, world, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    run = saved_run(tiny_config(world, tmp_path), *KINDS[kind], noise=0.1)
    out, given, found = tmp_path / "e", tmp_path / "pixels.safetensors", tmp_path / "found.safetensors"
    assert main(["--run", str(run), "--out", str(out)]) == 0
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    save_file({"pixels": pixels}, given)
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    words = [python, "-c", SCRIPT, str(out), str(given), str(found)]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["there"] == [] and str(ROOT) not in done.stderr
    ours = SparseGeneralistModel.load(out)
    assert told["captions"] == ours.caption(pixels, max_words=4)
    assert told["tokens"] == ours.processor.tokens(["a red circle"]).tolist()
    theirs = load_file(found)
    expected = {
        "image": ours.encode_image(pixels),
        "text": ours.encode_text(["a red circle", "the blue star"]),
        "video": ours.encode_video(pixels[:, None].repeat(1, 4, 1, 1, 1)),
        "classes": ours.classify(pixels, ["red circle", "blue star"]),
    }
    for name, tensor in expected.items():
        assert torch.allclose(theirs[name], tensor.detach(), rtol=0, atol=1e-6), name
    assert Path(found).is_file()
