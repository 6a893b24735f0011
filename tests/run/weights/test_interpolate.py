"""Weights between two runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.config import PromptConfig
from parallel.checkpoints import Fragment, open_checkpoint, save
from parallel.placement import Placement
from run.config import RunConfig
from run.config_file import load_config
from run.data import vocabulary_of
from run.folder import read_run, write_run_files
from run.weights.interpolate import main


def kept(run: RunConfig, name: str, weights: dict[str, list[float]]) -> Path:
    """A run with some weights."""
    run = dataclasses.replace(run, name=name)
    write_run_files(run, vocabulary_of(run))
    fragments = [
        Fragment(key, Placement((len(value),)), 0, True, {"weight": torch.tensor(value)})
        for key, value in weights.items()
    ]
    save(run.folder / "checkpoints", 7, fragments, {})
    return run.folder


def test_between_the_two_and_what_one_has_alone(config, capsys):
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0, 4.0], "gone": [1.0]})
    run = dataclasses.replace(run, init=str(base), data=dataclasses.replace(run.data, vocabulary="init"))
    tuned = kept(
        dataclasses.replace(run, model=dataclasses.replace(run.model, prompts=PromptConfig())),
        "tuned",
        {"a": [8.0, 0.0], "prompts": [3.0], "a.lora.up": [4.0]},
    )
    out = base.parent / "half"
    command = ["--base", str(base), "--tuned", str(tuned), "--share", "0.25", "--out", str(out)]
    assert main(command) == 0
    assert "1 tensors between the two, 2 of the tuned run alone, step 7" in capsys.readouterr().out
    found = open_checkpoint(out / "checkpoints" / "step_00000007")
    assert found.logical("a").tolist() == [2.0, 3.0] and found.logical("prompts").tolist() == [3.0]
    assert found.logical("a.lora.up").tolist() == [1.0]
    made, _ = read_run(out)
    assert made.name == "half" and made.model.prompts is not None
    assert main(command) == 2
    assert f"--out {out} is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": [1.0]}, "no weight in common"),
        ({"a": [1.0, 2.0, 3.0]}, r"a is (2,) in"),
        ({"a": [1.0, 2.0], "b.bank.weight": [1.0]}, "experts where"),
    ],
)
def test_other_networks_are_refused(config, capsys, weights, message):
    run = load_config(config)
    base, tuned = kept(run, "base", {"a": [0.0, 4.0], "b.linear.weight": [0.0]}), kept(run, "tuned", weights)
    assert main(["--base", str(base), "--tuned", str(tuned), "--out", str(base.parent / "out")]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--base", str(base), "--tuned", str(tuned), "--share", "1.5", "--out", "x"])


def test_a_folder_that_names_no_run_is_refused(config, capsys):
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0]})
    assert main(["--base", str(base), "--tuned", str(base), "--out", str(base.parent / "half way")]) == 2
    assert "'half way' names no run: letters, digits" in capsys.readouterr().err
