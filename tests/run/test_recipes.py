"""configs/recipes: every file is a run, on a base of the right kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from run.config import check_layout
from run.config_file import dump_config, load_config
from run.data import open_run_data
from run.errors import ConfigError
from tests.helpers.places import ROOT

RECIPES = ROOT / "configs" / "recipes"
PARTS = {"common.yaml", "prompt_tuning.yaml", "finetuning.yaml", "glue.yaml"}
"""What the others build on."""
FILES = sorted(path for path in RECIPES.rglob("*.yaml") if path.name not in PARTS)


def base_of(preset: str, folder: Path) -> Path:
    folder.mkdir()
    run = load_config(ROOT / "configs" / preset)
    (folder / "config.yaml").write_text(dump_config(run))
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recipe_takes_its_shape_from_the_base(tmp_path, path):
    small = path.parent.name == "small"
    preset = "real_small.yaml" if small else "presets/uni_perceiver_moe_base_stage2.yaml"
    if path.stem == "upcycle_moe":
        preset = "demo.yaml"
    base = load_config(base_of(preset, tmp_path / "base") / "config.yaml")
    run = load_config(path, [f"init={tmp_path / 'base'}"])
    assert (run.model.width, run.model.max_text) == (base.model.width, base.model.max_text)
    assert run.data.vocabulary == "init" or path.stem == "upcycle_moe"
    check_layout(run, 1 if small or run.micro_batches == 1 else 2)
    if path.name.startswith("pt_"):
        assert run.optimizer.tune == "prompts" and run.data.tasks[0].fraction == 0.01
        assert (run.model.head_classes > 0) == (run.data.tasks[0].kind == "classification")


def test_there_are_the_papers_recipes():
    assert len([path for path in FILES if path.parent.name == "papers"]) == 25


def test_a_base_that_is_gone_is_named():
    with pytest.raises(ConfigError, match=r"max_text=256 is above .*; init=runs/nowhere is not there, so the shape"):
        load_config(RECIPES / "papers" / "ft_sst2.yaml", ["init=runs/nowhere"])
    run = load_config(RECIPES / "small" / "flowers.yaml", ["init=runs/nowhere", "data.vocabulary=full"])
    with pytest.raises(ConfigError, match="init=runs/nowhere: there is no such run, export or file"):
        open_run_data(run)
