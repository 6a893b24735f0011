"""Where a run starts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.stream.part import PartOrder
from data.stream.source import OpenData, read_vocabulary
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from evaluation.config import EvaluateConfig
from parallel.checkpoints import CheckpointError
from parallel.health.claim import FolderError
from run.changes import told_changes
from run.config_file import load_config
from run.errors import ConfigError
from run.folder import read_run, write_run_files
from run.log_point import LogPoint
from run.resume import Resume, _position, earlier_start
from run.weights.best import Best


def opened(**sizes: tuple[int, ...]) -> Any:
    sources = [SimpleNamespace(name=name, digest=str(shards), order=None) for name, shards in sizes.items()]
    return OpenData(None, sources)  # type: ignore[arg-type]


TWO = opened(a=(5, 5), b=(9,))


def checkpoint(state: dict[str, Any]) -> Any:
    return SimpleNamespace(
        manifest=SimpleNamespace(base=None), folder=Path("runs/a/checkpoints/step_00000007"), step=7, state=state
    )


def test_a_run_without_a_checkpoint_is_at_its_beginning():
    assert _position(None, TWO) == (0, (0, 0))


def test_a_checkpoint_tells_steps_and_samples():
    assert _position(checkpoint({"consumed": [3, 4], "optimizer_step": 6}), TWO) == (7, (3, 4))


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({}, "optimizer_step is None"),
        ({"optimizer_step": 6}, "consumed is None"),
        ({"optimizer_step": "6", "consumed": [3, 4]}, "optimizer_step is '6'"),
        ({"optimizer_step": 6, "consumed": [3]}, r"consumed is \[3\], not 2 number"),
        ({"optimizer_step": 6, "consumed": [3, -1]}, "consumed is"),
    ],
)
def test_a_checkpoint_of_something_else_is_named(state, name):
    with pytest.raises(CheckpointError, match=f"step_00000007: state.{name}"):
        _position(checkpoint(state), TWO)


def test_a_data_set_that_has_grown_is_named():
    """The order of its samples is another one, so a position says nothing."""
    engine: Any = SimpleNamespace(optimizer_step=6, loss_scale=1.0, good_updates=0)
    resume = Resume(None, TWO, None, 0, (0, 0), ())  # type: ignore[arg-type]
    saved = checkpoint(json.loads(json.dumps(resume.state((3, 4), engine, LogPoint(Best(EvaluateConfig())).state))))
    assert _position(saved, TWO) == (7, (3, 4))
    with pytest.raises(CheckpointError, match="task b: its data set is another one"):
        _position(saved, opened(a=(5, 5), b=(9, 1)))


def test_a_part_with_other_samples_is_named():
    """Labels have changed, or one machine has read them otherwise. A checkpoint of before says nothing of parts."""

    def part(*chosen: int) -> OpenData:
        order = PartOrder([5], np.array(chosen), seed=0, window=5)
        return OpenData(None, [SimpleNamespace(name="a", digest="ab", order=order)])  # type: ignore[arg-type, list-item]

    state = {"consumed": [3], "optimizer_step": 6}
    saved = checkpoint(state | {"data": part(1, 2).digests})
    assert _position(saved, part(1, 2)) == (7, (3,))
    with pytest.raises(CheckpointError, match="task a, its part: its data set is another one"):
        _position(saved, part(1, 3))
    assert _position(checkpoint(state | {"data": {"a": "ab"}}), part(1, 3)) == (7, (3,))


# ------------------------------------------------------------------------------------------------- the same run?


@pytest.fixture
def started(config):
    """A run folder as training leaves it, without weights."""
    run = load_config(config)
    vocabulary = read_vocabulary(run.data)
    write_run_files(run, vocabulary)
    (run.folder / "checkpoints" / "step_00000003").mkdir(parents=True)
    (run.folder / "checkpoints" / "step_00000003" / "manifest.json").write_text(
        "{}"
    )  # and no `latest`: only the folder was copied
    return config, vocabulary


def test_another_vocabulary_is_another_run_and_an_empty_folder_is_none(started):
    config, vocabulary = started
    smaller = Vocabulary.restricted(vocabulary.tokenizer, vocabulary.clip_ids[:3])
    run = load_config(config)
    with pytest.raises(ConfigError, match="started with another vocabulary"):
        earlier_start(run, smaller)
    shutil.rmtree(run.folder / "checkpoints" / "step_00000003")
    assert earlier_start(load_config(config, ["model.depth=4"]), smaller) is None  # nothing to resume yet


def test_the_same_run_from_another_place(started, tmp_path, monkeypatch):
    """Data moved, the run folder copied, another working directory: nothing of it makes another run."""
    config, vocabulary = started
    run = load_config(config)
    data = Path(run.data.tasks[0].path).parent
    (tmp_path / "moved").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.folder, tmp_path / "elsewhere" / "copy")
    moved = [f"data.tasks.{task.name}.path=moved/{Path(task.path).name}" for task in run.data.tasks]
    again = load_config(config, ["runs=elsewhere", "name=copy", *moved])
    old = earlier_start(again, vocabulary)
    assert old is not None and told_changes(old, again, 3) == []


def test_a_run_of_an_earlier_version_is_read_and_not_gone_on_with(started):
    config, vocabulary = started
    run = load_config(config)
    earlier = Vocabulary.closed(vocabulary.tokenizer, vocabulary.clip_ids[: vocabulary.num_words])
    (run.folder / "vocabulary.json").write_text(json.dumps(earlier.clip_ids))
    read = read_run(run.folder)[1]
    assert (read.clip_ids, read.num_candidates) == (earlier.clip_ids, vocabulary.num_candidates)
    with pytest.raises(ConfigError, match=r"earlier version.*can be evaluated; to train, choose another name"):
        earlier_start(run, vocabulary)


def test_the_vocabulary_of_a_run_comes_back(started):
    config, vocabulary = started
    run = load_config(config)
    for kept in (
        vocabulary,
        Vocabulary.full(vocabulary.tokenizer),
        Vocabulary.closed(vocabulary.tokenizer, [320, 736]),
    ):
        write_run_files(run, kept)
        read = read_run(run.folder)[1]
        assert (read.clip_ids, read.num_words) == (kept.clip_ids, kept.num_words)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"words": 3, "spells": true}', '{"words": ["a"], "spells": true}', "7", "null"]
)
def test_a_damaged_vocabulary_is_named(started, content):
    run = load_config(started[0])
    (run.folder / "vocabulary.json").write_text(content)
    with pytest.raises(ConfigError, match=r"vocabulary\.json is damaged"):
        read_run(run.folder)


@pytest.mark.parametrize(
    ("place", "mode"),
    [("https://me:secret@host/shapes", 0o600), ("pipe:curl https://host/x", 0o600), ("/data/shapes", 0o644)],
)
def test_passwords_in_a_configuration_are_their_owner_s(config, place, mode):
    run = load_config(config)
    task = dataclasses.replace(run.data.tasks[0], path=place)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(task,)))
    write_run_files(run, Vocabulary.restricted(Tokenizer.load(), range(3)))
    assert stat.S_IMODE((run.folder / "config.yaml").stat().st_mode) == mode


def test_a_run_s_folder_that_cannot_be_written_is_one_line(config):
    run = load_config(config)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.folder.write_text("in the way")
    with pytest.raises(FolderError, match="cannot be written: File exists"):
        write_run_files(run, Vocabulary.restricted(Tokenizer.load(), range(3)))
