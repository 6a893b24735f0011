"""Weights between two runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import PromptConfig
from parallel.checkpoints import Base, CheckpointError, Fragment, open_checkpoint, save
from parallel.placement import Placement
from run.config import RunConfig
from run.config_file import load_config
from run.data import vocabulary_of
from run.folder import read_run, write_run_files
from run.weights.began import Began, keep_beginning
from run.weights.interpolate import main


def kept(run: RunConfig, name: str, weights: dict[str, list[float]], step: int = 7, base: Base | None = None) -> Path:
    """A run with some weights."""
    run = dataclasses.replace(run, name=name)
    write_run_files(run, vocabulary_of(run))
    fragments = [
        Fragment(key, Placement((len(value),)), 0, True, {"weight": torch.tensor(value)})
        for key, value in weights.items()
    ]
    save(run.folder / "checkpoints", step, fragments, {}, base=base)
    return run.folder


def test_between_the_two_and_what_one_has_alone(config, capsys):
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0, 4.0], "gone": [1.0]})
    data = dataclasses.replace(run.data, vocabulary="init")
    run = dataclasses.replace(run, init=str(base), init_step=7, init_only=("a", "a.lora.*"), data=data)
    tuned = kept(
        dataclasses.replace(run, model=dataclasses.replace(run.model, prompts=PromptConfig())),
        "tuned",
        {"a": [8.0, 0.0], "prompts": [3.0], "a.lora.up": [4.0]},
    )
    out = base.parent / "half"
    command = ["--base", str(base), "--tuned", str(tuned), "--share", "0.25", "--out", str(out)]
    assert main(command) == 0
    out_text = capsys.readouterr().out
    assert "1 tensors between the two, 2 of the tuned run alone, step 7" in out_text
    assert f"{tuned} keeps no record of the checkpoint it began at: step 7 of {base} is taken" in out_text
    found = open_checkpoint(out / "checkpoints" / "step_00000007")
    assert found.logical("a").tolist() == [2.0, 3.0] and found.logical("prompts").tolist() == [3.0]
    assert found.logical("a.lora.up").tolist() == [1.0]
    made, _ = read_run(out)
    assert made.name == "half" and made.model.prompts is not None
    assert (made.init, made.init_step, made.init_only) == ("", "newest", ("*",))
    assert main(command) == 2
    assert f"--out {out} is there already" in capsys.readouterr().err


def test_where_a_head_alone_was_trained_there_is_nothing_between(config, capsys):
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0, 4.0]})
    tuned = kept(
        dataclasses.replace(run, init=str(base), init_step=7), "tuned", {"a": [0.0, 4.0], "head.weight": [3.0]}
    )
    out = base.parent / "half"
    assert main(["--base", str(base), "--tuned", str(tuned), "--share", "0.3", "--out", str(out)]) == 2
    assert "the same weights but for what one of them has alone (head.weight)" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("tune", ["all", "head"])
def test_the_base_is_what_tuning_began_at(config, capsys, tune):
    """Where the base went on; of a copy of it, too; another run's checkpoint is refused."""
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0], "b": [4.0]}, step=3)
    first = open_checkpoint(base / "checkpoints" / "step_00000003")
    held = Base("../../../base/checkpoints/step_00000003", first.sha256, ("b",)) if tune == "head" else None
    tuned = kept(run, "tuned", {"a": [8.0]} if held else {"a": [8.0], "b": [8.0]}, base=held)
    if not held:
        keep_beginning(tuned, Began.at(first))
    kept(run, "base", {"a": [100.0], "b": [100.0]}, step=6)
    copy = shutil.copytree(base, base.parent / "copy")
    for folder in (base, copy):
        out = base.parent / f"of_{folder.name}"
        assert main(["--base", str(folder), "--tuned", str(tuned), "--share", "0.25", "--out", str(out)]) == 0
        assert "keeps no record" not in capsys.readouterr().out
        found = open_checkpoint(out / "checkpoints" / "step_00000007")
        assert (found.logical("a").tolist(), found.logical("b").tolist()) == ([2.0], [4.0] if held else [5.0])
    other = kept(run, "other", {"a": [1.0], "b": [1.0]}, step=3)
    assert main(["--base", str(other), "--tuned", str(tuned), "--out", str(base.parent / "out")]) == 2
    told = capsys.readouterr().err
    assert (
        f"--base {other} does not hold the checkpoint that {tuned} began at ({first.folder}, sha256 {first.sha256[:12]})"
        in told
    )
    assert len(told.splitlines()) == 1 and not (base.parent / "out").exists()
    if not held:
        (tuned / "init.json").write_text("{")
        assert main(["--base", str(base), "--tuned", str(tuned), "--out", str(base.parent / "out")]) == 2
        assert "init.json is damaged" in capsys.readouterr().err


def test_heads_and_prompts_are_the_tuned_run_s_where_the_base_has_its_own(config):
    """Tuning on top of tuning: of the same shape they are not averaged, of another they are no reason to refuse."""
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0], "similarity_weight": [1.0], "head.bias": [2.0, 2.0], "e.spe_bias": [4.0]})
    own = {"similarity_weight": [3.0], "head.bias": [6.0, 6.0, 6.0], "e.spe_bias": [8.0]}
    tuned, out = kept(run, "tuned", {"a": [4.0], **own}), base.parent / "half"
    assert main(["--base", str(base), "--tuned", str(tuned), "--share", "0.5", "--out", str(out)]) == 0
    found = open_checkpoint(out / "checkpoints" / "step_00000007")
    assert {name: found.logical(name).tolist() for name in found.names} == {"a": [2.0], **own}


@pytest.mark.parametrize("kept_only", [True, False])
def test_what_began_fresh_stays_whole(config, kept_only):
    """By what the start has noted; by the options of a run of before, which noted the checkpoint alone."""
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0], "head.bias": [0.0], "b": [4.0]})
    only = ("a", "head.*")
    tuned = kept(
        dataclasses.replace(run, init=str(base), init_only=("*",) if kept_only else only),
        "tuned",
        {"a": [8.0], "head.bias": [2.0], "b": [8.0]},
    )
    keep_beginning(tuned, Began.at(open_checkpoint(base / "checkpoints" / "step_00000007"), only))
    if not kept_only:
        record = json.loads((tuned / "init.json").read_text())
        del record["only"]
        (tuned / "init.json").write_text(json.dumps(record))
    out = base.parent / "half"
    assert main(["--base", str(base), "--tuned", str(tuned), "--out", str(out)]) == 0
    found = open_checkpoint(out / "checkpoints" / "step_00000007")
    assert {name: found.logical(name).item() for name in found.names} == {"a": 4.0, "head.bias": 1.0, "b": 8.0}


def test_updates_of_both_are_refused(config, capsys):
    """Between 1 x 1 and 3 x 3 lies 5, and 2 x 2 is 4."""
    run = load_config(config)
    base = kept(run, "base", {"a": [0.0], "a.lora.up": [1.0], "a.lora.down": [1.0]})
    out = base.parent / "half"
    tuned = kept(run, "tuned", {"a": [0.0], "a.lora.up": [3.0], "a.lora.down": [3.0]})
    assert main(["--base", str(base), "--tuned", str(tuned), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "trained the low-rank updates of" in told and "export the base, which merges its updates" in told
    same = kept(run, "same", {"a": [4.0], "a.lora.up": [1.0], "a.lora.down": [1.0]})
    assert main(["--base", str(base), "--tuned", str(same), "--out", str(out)]) == 0
    assert open_checkpoint(out / "checkpoints" / "step_00000007").logical("a").item() == 2.0


def test_a_failure_half_way_leaves_nothing(config, capsys, monkeypatch):
    run = load_config(config)
    base, tuned = kept(run, "base", {"a": [0.0]}), kept(run, "tuned", {"a": [4.0]})
    (tuned / "config.yaml").chmod(0o600)
    out = base.parent / "half"
    command = ["--base", str(base), "--tuned", str(tuned), "--out", str(out)]
    before = set(base.parent.iterdir())

    def full(*_: Any) -> None:
        raise CheckpointError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("run.weights.interpolate.save", full)
        assert main(command) == 2
    assert "No space left" in capsys.readouterr().err and set(base.parent.iterdir()) == before
    assert main(command) == 0
    assert read_run(out)[0].folder == out and (out / "config.yaml").stat().st_mode & 0o777 == 0o600


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
