"""What an evaluation takes from the run, the suite and the command line, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from data.shards import DatasetError
from data.stream.source import open_data
from data.tasks.base import Pixels
from run.config import RunConfig
from run.config_file import load_config
from run.data import open_run_data
from run.errors import ConfigError
from run.evaluation.arguments import parse_arguments
from run.evaluation.entries import (
    Entry,
    bases_of,
    check_fits,
    check_said,
    entries_of,
    is_other_data,
    said_anew,
    training_of,
)
from run.evaluation.suite import parse_suite
from tests.helpers.runs import tiny_config


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> RunConfig:
    return load_config(tiny_config(world, tmp_path_factory.mktemp("entries")))


def changed(run: RunConfig, **options) -> RunConfig:
    """options of the first task."""
    first, *others = run.data.tasks
    data = dataclasses.replace(run.data, tasks=(dataclasses.replace(first, **options), *others))
    return dataclasses.replace(run, data=data)


def of_suite(run: RunConfig, folder: Path, tasks: str, *words: str) -> list[Entry]:
    path = folder / "own.yaml"
    path.write_text(f"tasks:\n{tasks}\n")
    return entries_of(parse_arguments(["--run", "r", "--suite", str(path), *words]), run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("max_text: 512", r"max_text=512 is above model.max_text=32"),
        ("num_frames: 16", r"num_frames=16 is above model.max_frames=4"),
        ("temperature: foo", r"temperature='foo' is not among model.temperatures="),
        ("answer: generate", r"answer=generate is for classification, .*, not for retrieval"),
        ("views: [3, 4]", r"views are those of classification, not of retrieval"),
    ],
)
def test_a_suite_s_options_go_with_network_and_kind(run, world, tmp_path, options, said):
    entry = f"- {{name: pairs, kind: retrieval, path: {world / 'pairs'}, options: {{{options}}}}}"
    with pytest.raises(ConfigError, match=f"^suite task pairs: {said}") as caught:
        of_suite(run, tmp_path, entry)
    assert "\n" not in str(caught.value)


def test_a_suite_says_where_it_lies_and_whose_options_it_has(run, world, tmp_path):
    entries = of_suite(
        run,
        tmp_path,
        f"- {{name: films, kind: classification, path: {world / 'clips'}}}\n"
        f"- {{name: shapes, kind: classification, path: {world / 'shapes'}}}",
        f"films.path={tmp_path}",
        "--tasks",
        "shapes",
    )
    assert [(e.name, e.of_suite, e.usual) for e in entries] == [("shapes", "shapes", str(world / "shapes"))]
    assert bases_of(entries) == ""
    entries = of_suite(run, tmp_path, f"- {{name: films, kind: classification, path: {world / 'clips'}}}")
    assert bases_of(entries) == "with the options of the run's tasks: films as clips"
    with (
        pytest.raises(DatasetError, match=rf"^suite task films \({world / 'clips'}\): task clips: no$"),
        entries[0].named(),
    ):
        raise DatasetError("task clips: no")
    with pytest.raises(DatasetError, match=r"^task clips: no$"), Entry("clips", entries[0].task, "none").named():
        raise DatasetError("task clips: no")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"split": "heldout"}, "data.tasks.shapes.split changes nothing in an evaluation: name it by --split"),
        ({"shots": 3}, "data.tasks.shapes.shots changes nothing .*: --shots of a --probe"),
        ({"fraction": 0.5}, "data.tasks.shapes.fraction changes nothing .*: --fraction of a --probe"),
        ({"shards": ("a.tar",)}, "data.tasks.shapes.shards changes nothing .*: name a folder"),
        ({"batch_size": 3}, "data.tasks.shapes.batch_size changes nothing .*: leave it out"),
    ],
)
def test_what_is_said_of_a_task_and_changes_nothing_is_refused(run, options, remedy):
    with pytest.raises(ConfigError, match=remedy):
        check_said(changed(run, **options), run, False)


def test_what_is_said_of_the_data_and_changes_nothing_is_refused(run):
    for key, value, remedy in (("workers", 3, "data.workers .*: use --workers"), ("draw", "same", "leave it out")):
        with pytest.raises(ConfigError, match=remedy):
            check_said(dataclasses.replace(run, data=dataclasses.replace(run.data, **{key: value})), run, False)
    moved = dataclasses.replace(run, data=dataclasses.replace(run.data, cache_dir="/x", word_end=True))
    check_said(changed(moved, path="/y", max_text=7, mask_rate=0.3), run, False)
    check_said(changed(run, shards=("a.tar",)), run, True)  # a training split is read from them


def test_an_end_after_words_stands_in_the_rows_of_what_compares_with_words(run):
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, word_end=True))
    said = {task.name: said_anew(Entry(task.name, task, "none"), other, run, False) for task in run.data.tasks}
    assert said == {
        "shapes": "", "clips": "", "retrieval": "", "sentences": ", word_end True", "captions": ", word_end True",
    }  # fmt: skip


def test_a_probe_reads_both_splits_with_the_same_options(run):
    clips = next(task for task in run.data.tasks if task.name == "clips")
    own = changed(dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(clips,))), split="mine", shots=2)
    asked = dataclasses.replace(clips, split="heldout", num_frames=2, max_text=5, frame_sampling="uniform")
    assert training_of(Entry("clips", asked, "none"), own) == dataclasses.replace(asked, split="mine", shots=2)


def test_a_place_said_anew_may_hold_other_data(run, world, tmp_path):
    """Of a suite its usual place counts, whatever the run was trained on; where that is gone the data was moved."""
    other = shutil.copytree(world / "shapes", tmp_path / "other")
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    vocabulary = open_run_data(run).vocabulary
    pixels = Pixels(run.model.image_size, run.model.patch)

    def opened(task):
        return open_data(dataclasses.replace(run.data, tasks=(task,)), pixels, 0, vocabulary).sources[0]

    asked = dataclasses.replace(run.data.tasks[0], path=str(other), split="heldout")
    source = opened(asked)
    for usual, is_other in (
        ("", True),
        (str(world / "shapes"), True),
        (str(other), False),
        (str(tmp_path / "gone"), False),
    ):
        assert is_other_data(Entry("shapes", asked, "none", "shapes", usual), source, run, opened) == is_other, usual


def test_a_scale_that_the_network_has_not_is_one_line(run):
    entry = Entry("shapes", run.data.tasks[0], "none")
    source = open_run_data(run).sources[0]
    check_fits(entry, source, run)
    bare = dataclasses.replace(
        run, model=dataclasses.replace(run.model, temperatures=("video", "text", "caption", "retrieval"))
    )
    with pytest.raises(ConfigError, match=r"^shapes: its logit scale 'image' is not among .*shapes.temperature=video"):
        check_fits(entry, source, bare)


def test_sentences_of_the_command_line_hold_for_a_suite_s_classes(run, world, tmp_path):
    tasks = f"- {{name: shapes, kind: classification, path: {world / 'shapes'}, templates: openai}}\n"
    tasks += f"- {{name: pairs, kind: retrieval, path: {world / 'pairs'}}}"
    for words, expected in (([], "openai"), (["--templates", "simple"], "simple"), (["--templates", "none"], "none")):
        assert [e.templates for e in of_suite(run, tmp_path, tasks, *words)] == [expected, "none"]


def test_suites_of_imagenet_have_bare_names():
    """As Uni-Perceiver; `--templates openai` is for CLIP's sentences."""
    for name in ("imagenet", "imagenet_variants"):
        assert {task.templates for task in parse_suite(name).tasks} == {"none"}
