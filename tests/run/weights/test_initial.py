"""What weights a run starts with, and what a tuning run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from model.config import LoraConfig
from model.tuning.warm_start import WarmStart
from parallel.checkpoints import CheckpointError, newest, open_checkpoint
from run.config_file import load_config
from run.data import open_run_data
from run.errors import ConfigError
from run.folder import read_run
from run.resume import Resume
from run.weights.initial import _taken, initial_weights
from tests.helpers.models import make, tiny
from tests.helpers.places import ROOT
from tests.helpers.runs import environment, losses, records, train
from tests.run.test_resume import checkpoint


def tuning(config: Path, **changes: Any) -> Path:
    """A recipe on one task, from the run `base`."""
    raw = yaml.safe_load(config.read_text())
    shapes = next(task for task in raw["data"]["tasks"] if task["name"] == "shapes")
    raw["data"] = {"tasks": [shapes]}
    raw |= {"init": str(config.parent / "runs" / "base"), "name": "tuned", "steps": 4, "save_every": 2}
    raw["model"] = {"prompts": {"length": 2}, "head_classes": 6}
    raw["optimizer"] |= {"tune": "prompts"}
    path = config.parent / "tuning.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found, _ = newest(folder / "checkpoints")
    assert found is not None
    return {name: found.logical(name, "weight") for name in found.names}


@pytest.mark.slow
def test_prompt_tuning_stores_what_it_trains_beside_the_base(config):
    """Shape and vocabulary are the base's; what is not listed stays bit-equal; a second half equals the whole; another base is refused."""
    train(config, "name=base", "steps=3")
    runs = config.parent / "runs"
    recipe = tuning(config)
    out = train(recipe)
    assert "init " in out and "new: 2 head, 2 prompts, 1 similarity_weight, 1 spe_bias" in out
    run, vocabulary = read_run(runs / "tuned")
    base, base_vocabulary = read_run(runs / "base")
    assert (run.model.width, run.model.experts, run.model.tasks) == (32, base.model.experts, ("shapes",))
    assert vocabulary.clip_ids == base_vocabulary.clip_ids

    before, after = weights(runs / "base"), weights(runs / "tuned")
    changed = {name for name, value in after.items() if name not in before or not torch.equal(before[name], value)}
    assert changed and all(
        any(part in name for part in ("prompts", "spe_bias", "norm.", "head.", "similarity_weight")) for name in changed
    )
    assert not any(".router." in name for name in changed)
    last = runs / "tuned" / "checkpoints" / "step_00000004"
    assert "qkv" not in (last / "manifest.json").read_text().partition('"base"')[0]
    assert (last / "rank_00000.safetensors").stat().st_size < 100_000

    train(recipe, "name=half", "steps=4", "save_every=2")  # to a place from which the last checkpoint is taken away
    shutil.rmtree(runs / "half" / "checkpoints" / "step_00000004")
    train(recipe, "name=half")
    assert losses(config, "half")[-2:] == losses(config, "tuned")[-2:]
    resumed = weights(runs / "half")
    assert all(torch.equal(resumed[name], after[name]) for name in after)

    done = subprocess.run(
        [sys.executable, "evaluate.py", "--run", str(runs / "tuned"), "--split", "heldout", "--limit", "16"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["samples"] == 16

    train(config, "name=other", "steps=3", "seed=5")
    shutil.rmtree(runs / "base" / "checkpoints")
    with pytest.raises(CheckpointError, match="which is not there: put it back"):
        open_checkpoint(last)
    shutil.copytree(runs / "other" / "checkpoints", runs / "base" / "checkpoints")
    with pytest.raises(CheckpointError, match="was tuned from another checkpoint"):
        open_checkpoint(last)


@pytest.mark.slow
def test_updates_are_trained_on_two_ranks_with_experts(config):
    """LoRA from a run of one rank, experts over two; the base stays as it is, and the run goes on on one rank."""
    train(config, "name=base", "steps=2", "save_every=2")
    recipe = tuning(config, model={"lora": {"rank": 2}})
    train(recipe, "optimizer.tune=lora", "parallel.expert=2", "steps=2", ranks=2)
    train(recipe, "optimizer.tune=lora", "steps=4")
    assert [record["step"] for record in records(config, "tuned")] == [1, 2, 3, 4]
    found, _ = newest(config.parent / "runs" / "tuned" / "checkpoints")
    assert found is not None and all(".lora." in name for name in found.manifest.tensors)
    assert found.logical("tower.encoder.blocks.0.ffn.up.bank.lora.up", "weight").abs().sum() > 0


def test_initial_weights_are_taken_once(config, monkeypatch):
    """From a file, from a run folder by patterns, and not where a checkpoint follows."""
    asked: list[Any] = []
    monkeypatch.setattr("run.weights.initial.initialise", lambda objective, seed: asked.append(seed))
    monkeypatch.setattr("run.weights.initial.load_converted", lambda objective, path: asked.append(path))
    monkeypatch.setattr("run.weights.initial._names_in", lambda path: frozenset({"tower.embedding.text_type"}))
    found_step = SimpleNamespace(folder=Path("runs/a/checkpoints"), step=2, sha256="ab")
    monkeypatch.setattr(
        "run.weights.initial.with_found",
        lambda root, step, use: (asked.append((root, step)), (found_step, WarmStart((), (), (), ())))[1],
    )
    network = SimpleNamespace(model=None), SimpleNamespace(clip_ids=())
    monkeypatch.setattr("run.weights.initial.read_run", lambda folder: network)

    def initialise(overrides: list[str], found: Any = None) -> list[Any]:
        asked.clear()
        data: Any = SimpleNamespace(vocabulary=SimpleNamespace(clip_ids=()))
        initial_weights(Resume(load_config(config, overrides), data, found, 0, (0, 0), ()), make())
        return list(asked)

    assert initialise(["seed=5"]) == [5]
    assert initialise(["init=a.safetensors"]) == [0, Path("a.safetensors")]
    assert initialise(["init=runs/a", "init_only=[tower.*]"]) == [0, (Path("runs/a/checkpoints"), None)]
    record = load_config(config).folder / "init.json"
    assert json.loads(record.read_text()) == {
        "checkpoint": str(Path("runs/a/checkpoints").resolve()), "step": 2, "sha256": "ab", "only": ["tower.*"],
    }  # fmt: skip
    stored = checkpoint({})
    stored.names, stored.manifest.tensors = {"a"}, {"a": SimpleNamespace(kinds=("weight", "exp_avg"))}
    assert initialise(["init=runs/a"], stored) == [0] and record.is_file()
    assert initialise([]) == [0] and not record.is_file()
    with pytest.raises(
        ConfigError, match=r"init_step=4 chooses among a run's checkpoints; init=a\.safetensors is no run"
    ):
        initialise(["init=a.safetensors", "init_step=4"])
    with pytest.raises(ConfigError, match=r"a\.safetensors is taken whole"):
        initialise(["init=a.safetensors", "init_only=[tower.*]"])
    monkeypatch.setattr("run.weights.initial.is_run", lambda folder: True)
    monkeypatch.setattr("run.weights.best.newest_state", lambda root: {"best": {"step": 3}})
    for told, step in (("newest", None), ("7", 7), ("best", 3)):
        taken = initialise(["init=runs/a", "init_only=[tower.*]", f"init_step={told}"])
        assert taken == [0, (Path("runs/a/checkpoints"), step)]


def test_what_is_new_and_what_of_it_is_trained(config, monkeypatch):
    """A logit scale that the base lacks is trained, also after a resume, which sees it by its moments; what stays as it began is told."""
    new = ("log_scales.text", "tower.embedding.text_type")
    found: Any = SimpleNamespace(folder=Path("runs/a/checkpoints/step_00000002"), step=2, sha256="ab")
    monkeypatch.setattr(
        "run.weights.initial.with_found", lambda root, step, use: (found, WarmStart(("a",), (), new, ()))
    )
    monkeypatch.setattr("run.weights.initial.chosen_step", lambda folder, step: None)
    monkeypatch.setattr("run.weights.initial.read_run", lambda folder: (SimpleNamespace(model=None), data.vocabulary))
    data: Any = SimpleNamespace(vocabulary=SimpleNamespace(clip_ids=()))
    run = load_config(config, ["init=runs/a", "optimizer.tune=lora", "model.lora={rank: 1}"])
    objective = make(tiny(lora=LoraConfig(rank=1)))
    initial = initial_weights(Resume(run, data, None, 0, (), ()), objective)
    assert initial.notes[-1] == "new and not trained: 1 other"
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert "log_scales.text" in trained and "log_scales.image" not in trained

    stored = checkpoint({})
    kinds = {
        name: ("weight", "exp_avg") if name in trained else ("weight",) for name, _ in objective.named_parameters()
    }
    stored.names, stored.manifest.tensors = set(kinds), {name: SimpleNamespace(kinds=of) for name, of in kinds.items()}
    again = make(tiny(lora=LoraConfig(rank=1)))
    initial_weights(Resume(run, data, stored, 2, (), ()), again)
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == trained


def test_what_a_file_of_weights_lacks_is_new(config, tmp_path):
    weights = {name: parameter.detach() for name, parameter in make(tiny()).named_parameters()}
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "log_scales.text"}, tmp_path / "a.safetensors"
    )
    overrides = [f"init={tmp_path / 'a.safetensors'}", "optimizer.tune=lora", "model.lora={rank: 1}"]
    objective = make(tiny(lora=LoraConfig(rank=1)))
    resume = Resume(load_config(config, overrides), None, None, 0, (), ())  # type: ignore[arg-type]
    new = initial_weights(resume, objective).new
    assert "log_scales.text" in new and all(name == "log_scales.text" or ".lora." in name for name in new)
    assert objective.log_scales["text"].requires_grad and not objective.log_scales["image"].requires_grad


@pytest.mark.parametrize(
    "options", [["init_step=best"], ["init=runs/a", "init_step=-1"], ["init=runs/a", "init_step=last"]]
)
def test_a_step_is_a_runs(config, options):
    with pytest.raises(ConfigError, match="init_step"):
        load_config(config, options)


def test_a_head_must_fit_its_task(config):
    head = load_config(config, ["model.head_classes=6"])
    with pytest.raises(ConfigError, match="head_classes=6 needs a single task"):
        open_run_data(head)
    shapes = tuple(task for task in head.data.tasks if task.name == "shapes")
    one = dataclasses.replace(head, data=dataclasses.replace(head.data, tasks=shapes))
    assert open_run_data(one).sources
    with pytest.raises(ConfigError, match="head_classes=7: task shapes has 6 classes; set it to that"):
        open_run_data(dataclasses.replace(one, model=dataclasses.replace(one.model, head_classes=7)))


def test_files_that_are_not_taken_as_they_are_name_the_way(config, tmp_path):
    """Official weights, and what other programs write."""
    for name in ("x.pth", "x.bin"):
        (tmp_path / name).write_bytes(b"weights")
        run = load_config(config, [f"init={tmp_path / name}"])
        with pytest.raises(ConfigError, match=rf"init=.*{name} is a file .* `python -m model.exchange.public`"):
            _taken(run, None, SimpleNamespace(named_parameters=list))  # type: ignore[arg-type]


def test_tensors_of_another_program_name_the_way(config, tmp_path):
    path = tmp_path / "x.safetensors"
    run = load_config(config, [f"init={path}"])
    objective: Any = SimpleNamespace(named_parameters=lambda: [("tower.embedding.text_type", None)])
    for content, said in (({"visual.proj": torch.zeros(1)}, "but visual.proj: it is neither"), ({}, "but none at all")):
        save_file(content, path)
        with pytest.raises(ConfigError, match=rf"no tensor of this model, {said}.*`python -m model.exchange.public`"):
            _taken(run, None, objective)  # type: ignore[arg-type]
    path.write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"init=.*x\.safetensors cannot be read as weights"):
        _taken(run, None, objective)  # type: ignore[arg-type]
