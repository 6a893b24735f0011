"""Suites: what they read, what they take from a run, and what they say where data is missing."""

from __future__ import annotations

import pytest

from data.config import TaskConfig
from data.shards import DatasetInfo, write_info
from evaluation import EVALUATORS
from run.errors import ConfigError
from run.evaluation.suite import RELATED, SUITES, SuiteTask, as_trained, read_suite
from tests.helpers.streams import write_numbered

TRAINED = (
    TaskConfig(name="shapes", kind="classification", path="x", max_text=8, label_smoothing=0.1, shards=("a.tar",)),
    TaskConfig(name="pets", kind="classification", path="y", max_text=9),
    TaskConfig(name="pairs", kind="retrieval", path="z", max_text=24, temperature="pairs"),
)


def suite(tmp_path, text: str) -> str:
    write_numbered(tmp_path / "set", (2,))
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("SET", str(tmp_path / "set")))
    return str(path)


def test_a_suite_of_ones_own_and_other_places(tmp_path):
    first, second = (
        "{name: a b, kind: classification, path: SET}",
        "{name: c, kind: retrieval, path: nowhere, split: test}",
    )
    path = suite(tmp_path, f"about: a try\ntasks:\n- {first}\n- {second}\n")
    found = read_suite(path, {"c": str(tmp_path / "set")})
    assert (found.name, found.about) == ("mine", "a try")
    assert [(t.name, t.kind, t.split, t.path) for t in found.tasks] == [
        ("a b", "classification", "val", str(tmp_path / "set")), ("c", "retrieval", "test", str(tmp_path / "set")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: []\n", "names must be unique; it has"),
        (
            "tasks:\n- {name: a, kind: classification, path: SET}\n- {name: a, kind: retrieval, path: SET}\n",
            "names must be unique",
        ),
        ("tasks:\n- {name: a, path: SET}\n", r"tasks.0.kind: Field required"),
        ("tasks:\n- {name: a, kind: x, path: SET, weight: 3}\n", "tasks.0.weight"),
        ("tasks:\n- {name: a, kind: x, path: SET}\n  b: 1\n", "suite .*mine.yaml: not YAML"),
        ("- a\n", "suite .*mine.yaml"),
        (
            "tasks:\n- {name: a, kind: x, path: nowhere, prepare: make it}\n",
            "needs the data set nowhere, .*; to make it: make it",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read_suite(suite(tmp_path, text), {})
    assert "\n" not in str(caught.value)


def test_names_of_suites_and_of_their_tasks_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"nosuch.yaml: No such file or directory; there are .*small.yaml"):
        read_suite("nosuch", {})
    with pytest.raises(ConfigError, match="no task 'b'; it has a"):
        read_suite(suite(tmp_path, "tasks:\n- {name: a, kind: classification, path: SET}\n"), {"b": "x"})


def test_data_of_other_tasks_may_be_missing(tmp_path):
    path = suite(
        tmp_path, "tasks:\n- {name: a, kind: classification, path: SET}\n- {name: b, kind: x, path: nowhere}\n"
    )
    assert [task.name for task in read_suite(path, {}, ["a"]).tasks] == ["a"]
    with pytest.raises(ConfigError, match="no task 'c'; it has a, b"):
        read_suite(path, {}, ["c"])


def test_options_are_those_of_the_nearest_trained_task():
    def of(**changes) -> TaskConfig:
        return as_trained(
            SuiteTask(**{"name": "a", "kind": "classification", "path": "/data", "split": "test"} | changes), TRAINED
        )

    first = of()
    assert (first.name, first.path, first.split, first.max_text) == ("shapes", "/data", "test", 8)
    assert (first.shards, first.label_smoothing) == ((), 0.0)
    assert of(name="pets").max_text == 9 and of(like="pets").name == "pets"
    assert of(options={"max_text": 30}).max_text == 30
    assert of(path="https://host/x").path == "https://host/x"
    by_pairs = as_trained(SuiteTask(name="a", kind="classification", path="/data"), TRAINED[2:])
    assert (by_pairs.kind, by_pairs.name, by_pairs.temperature) == ("classification", "pairs", "pairs")
    by_names = as_trained(SuiteTask(name="a", kind="retrieval", path="/data"), TRAINED[:1])
    assert (by_names.kind, by_names.name) == ("retrieval", "shapes")
    for changes, said in (
        ({"kind": "captioning"}, "no task of the run serves 'captioning'; it has shapes"),
        ({"like": "nobody"}, "no task of the run serves"),
        (
            {"options": {"max_txt": 3}},
            "suite task a: options: 'max_txt' is none that a suite may set; these are max_text, ",
        ),
        *(({"options": {key: 1}}, f"options: '{key}' is none") for key in ("shots", "fraction", "path", "batch_size")),
        ({"options": {"max_text": 1}}, "suite task a: options: need batch_size >= 1, .*max_text >= 2"),
        ({"options": {"num_frames": "many"}}, "suite task a: options: num_frames: Input should be a valid integer"),
        (
            {"kind": "retrieval", "templates": "openai"},
            "suite task a: templates=openai are for classification of pictures and clips, not for retrieval: leave it",
        ),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            of(**changes)
        assert "\n" not in str(caught.value)


def described(folder, kind: str) -> str:
    folder.mkdir()
    write_info(folder, DatasetInfo(kind=kind, classes=("a", "b"), token_ids=(), splits={}))  # type: ignore[arg-type]
    return str(folder)


def test_of_several_tasks_the_one_of_the_same_name_or_medium_serves(tmp_path):
    """imagenet and kinetics700 are trained, kinetics400 is asked: frames of a clip are those of clips."""
    pictures, clips = (described(tmp_path / kind, kind) for kind in ("image_class", "video_class"))
    imagenet, kinetics = (
        TaskConfig(name=name, kind="classification", path=path, num_frames=frames)
        for name, path, frames in (("imagenet", pictures, 4), ("kinetics700", clips, 8))
    )
    moved = TaskConfig(name="moved", kind="classification", path=str(tmp_path / "gone"))

    def base(trained, name="kinetics400", path=clips) -> tuple[str, int]:
        found = as_trained(SuiteTask(name=name, kind="classification", path=path), trained)
        return found.name, found.num_frames

    assert base((imagenet, kinetics)) == ("kinetics700", 8) and base((imagenet, kinetics), "imagenet") == (
        "imagenet",
        4,
    )
    assert base((kinetics, imagenet), "cars", pictures) == ("imagenet", 4)
    assert base((imagenet, moved))[0] == "moved" and base((moved, imagenet, kinetics))[0] == "kinetics700"
    assert base((imagenet, kinetics), path="/not/there")[0] == "imagenet"


def test_another_kind_takes_the_scale_that_was_trained(tmp_path):
    """And not the one of its own kind, which never was."""
    pictures = described(tmp_path / "pictures", "image_class")
    names = TaskConfig(name="names", kind="classification", path=pictures)
    pairs = TaskConfig(name="pairs", kind="retrieval", path="gone")

    def scale(kind: str, base: TaskConfig, answer: str = "", **options) -> str:
        asked = SuiteTask(name="a", kind=kind, path=pictures, options=options)
        return as_trained(asked, (base,), answer).temperature

    assert scale("classification", pairs) == "retrieval" and scale("retrieval", names) == "image"
    assert scale("classification", names) == "" and scale("classification", pairs, temperature="own") == "own"
    # Words have their own.
    assert scale("classification", pairs, "generate") == "" and scale("classification", pairs, answer="generate") == ""


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_suites_of_the_repository_can_be_read_once_their_data_is_there(path, tmp_path):
    (tmp_path / "dataset.json").write_text("")
    from run.strict_text import read_yaml

    names = [str(task["name"]) for task in read_yaml(path.read_bytes())["tasks"]]
    found = read_suite(path.stem, {name: str(tmp_path) for name in names})
    for task in found.tasks:
        assert task.kind in EVALUATORS and task.kind in RELATED and task.prepare.startswith("python -m data.")
