"""The arguments of evaluate.py."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

import evaluate
from evaluate import main
from evaluation.config import PROBES
from evaluation.metrics.meteor import MeteorError
from evaluation.probes import METHODS
from model.objective import NotFiniteError
from run.errors import ConfigError
from run.evaluation.arguments import parse_arguments, places_of_suite
from run.evaluation.entries import Entry, entries_of, training_of
from run.folder import read_run
from tests.helpers.runs import saved_run, tiny_config, train


def test_tasks_are_taken_once_and_overrides_may_follow_them():
    arguments = parse_arguments(["--run", "r", "--tasks", "b", "a", "b", "data.workers=1"])
    assert arguments.tasks == ["b", "a"] and arguments.overrides == ["data.workers=1"]
    assert parse_arguments(["data.workers=1", "--run", "r"]).tasks == []


def test_places_of_a_suite_are_told_apart_from_options_of_the_run():
    words = ["--run", "r", "--suite", "s", "cifar10.path=/a", "data.workers=1", "data.tasks.x.path=/b"]
    arguments = parse_arguments(words)
    assert places_of_suite(arguments) == ["cifar10.path=/a"]
    assert places_of_suite(parse_arguments(["--run", "r", "cifar10.path=/a"])) == []


def test_probes_of_the_command_line_are_those_that_there_are():
    assert tuple(METHODS) == PROBES


def test_a_run_is_evaluated_or_two_are_compared(capsys):
    assert list(map(str, parse_arguments(["--compare", "a", "b"]).compare)) == ["a", "b"]
    for words in ([], ["--run", "a", "--compare", "a", "b"], ["--compare", "a"]):
        with pytest.raises(SystemExit):
            parse_arguments(words)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--length-penalty", "nan"),
        ("--length-penalty", "inf"),
        ("--beam", "0"),
        ("--batch-size", "-1"),
        ("--limit", "x"),
        ("--shots", "0"),
        ("--trials", "0"),
        ("--fraction", "nan"),
        ("--probe", "svm"),
    ],
)
def test_values_that_mean_nothing_are_refused(capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--run", "r", option, value])
    assert caught.value.code == 2 and f"argument {option}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--shots", "3"], ["--fraction", "0.1"], ["--probe", "knn", "--shots", "3", "--fraction", "0.1"]]
)
def test_parts_are_those_of_a_probe_and_one_of_them(capsys, words):
    with pytest.raises(SystemExit):
        parse_arguments(["--run", "r", *words])


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A folder of a run that has trained two steps."""
    config = tiny_config(world, tmp_path_factory.mktemp("evaluated"))
    train(config, "steps=2")
    return config.parent / "runs" / "tiny"


def evaluated(capsys, run: Path, *words: str, expect: int = 0) -> str:
    capsys.readouterr()
    assert main(["--run", str(run), "--threads", "1", *words]) == expect
    told = capsys.readouterr()
    return told.err if expect else told.out


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def untrained(world, tmp_path_factory) -> Path:
    """A folder of a run as it starts."""
    return saved_run(tiny_config(world, tmp_path_factory.mktemp("untrained")))


def test_frames_of_clips_in_another_order_or_frozen(capsys, untrained):
    words = ["--split", "heldout", "--limit", "4"]
    shuffled = lines_of(evaluated(capsys, untrained, *words, "--frames", "shuffled"))
    frozen = lines_of(evaluated(capsys, untrained, *words, "--frames", "frozen", "--tasks", "clips"))
    evaluated(capsys, untrained, *words, "--tasks", "clips")
    few = ", 4 samples at most"
    assert [line["task"] for line in (*shuffled, *frozen)] == [
        f"clips, shuffled frames{few}",
        f"clips, frozen frames{few}",
    ]
    (path,) = (untrained / "evaluations").glob("heldout_step_*.json")
    options = {row["task"]: row["options"].get("frames") for row in json.loads(path.read_text())["results"]}
    assert options == {
        f"clips{few}": None,
        f"clips, shuffled frames{few}": "shuffled",
        f"clips, frozen frames{few}": "frozen",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "shapes"], "--frames frozen is for clips of several frames, not for shapes (image_class)"),
        (["--tasks", "clips", "captions"], "not for captions (image_caption): name others by --tasks"),
        (["data.tasks.clips.num_frames=1", "--tasks", "clips"], "not for clips (video_class, num_frames=1)"),
    ],
)
def test_frames_of_what_has_none(capsys, untrained, words, said):
    error = evaluated(capsys, untrained, "--frames", "frozen", *words, expect=2)
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_probes_of_a_run_and_of_a_suite(capsys, run, world, tmp_path):
    lines = lines_of(evaluated(capsys, run, "--split", "heldout", "--probe", "ridge", "--shots", "2", "--trials", "2"))
    assert [line["task"] for line in lines] == [
        f"{task}, ridge probe, 2 shots, 2 trials" for task in ("shapes", "clips")
    ]
    assert all(line["samples"] == 16 and line["training_samples"] == 12 and line["seconds"] > 0 for line in lines)
    kept = json.loads((run / "evaluations" / "heldout_probes_step_00000002.json").read_text())
    assert [row["options"]["probe"] for row in kept["results"]] == ["ridge", "ridge"]
    assert len(kept["results"][0]["options"]["training"]) == 12
    suite = tmp_path / "own.yaml"
    suite.write_text(f"tasks:\n- {{name: other, kind: classification, path: {world / 'shapes'}, split: val}}\n"
                     f"- {{name: pairs, kind: retrieval, path: {world / 'pairs'}}}\n")  # fmt: skip
    table = evaluated(capsys, run, "--suite", str(suite), "--probe", "knn")
    assert "other, knn probe  accuracy" in table and "pairs" not in table
    for words, said in (
        (["--probe", "knn", "--split", "train"], "fitted to split train of shapes: evaluate another split"),
        (["--probe", "knn", "--tasks", "captions"], "not for captions (captioning)"),
        (["--probe", "knn", "--fraction", "2"], "fraction lie in (0, 1]"),
    ):
        error = evaluated(capsys, run, *words, expect=2)
        assert said in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_the_demo_s_suite_whole_and_in_part(capsys, run, world):
    places = {"shapes": "shapes", "clips": "clips", "sentences": "sentences", "captions": "pairs", "retrieval": "pairs"}
    given = [f"{task}.path={world / folder}" for task, folder in places.items()]
    table = evaluated(capsys, run, "--suite", "demo", "--limit", "8", *given)
    assert [line.split()[0].strip(",") for line in table.splitlines()] == ["task", *places]
    table = evaluated(capsys, run, "--suite", "demo", "--limit", "8", "--views", "3x2", *given, "--tasks", "clips")
    assert [line.partition("  ")[0] for line in table.splitlines()] == ["task", "clips, 3x2 views, 8 samples at most"]
    kept = json.loads((run / "evaluations" / "demo_step_00000002.json").read_text())
    options = {row["task"]: row["options"] for row in kept["results"]}
    few = "8 samples at most"
    assert options[f"clips, 3x2 views, {few}"]["views"] == [3, 2] and options[f"shapes, {few}"]["views"] == [1, 1]
    assert "no task 'clip'; it has shapes" in evaluated(capsys, run, "--suite", "demo", "--tasks", "clip", expect=2)


@pytest.mark.slow
def test_names_are_ranked_and_written_by_one_run(capsys, run):
    words = ["--split", "heldout", "--tasks", "shapes", "captions"]
    written = lines_of(evaluated(capsys, run, *words, "--answer", "generate"))
    ranked = lines_of(evaluated(capsys, run, *words, "--answer", "rank"))
    assert [line["task"] for line in (*written, *ranked)] == [
        "shapes, written",
        "captions",
        "shapes, ranked",
        "captions",
    ]
    assert "named" in written[0] and "top5_accuracy" in ranked[0] and written[0]["chance"] == ranked[0]["chance"]
    kept = json.loads((run / "evaluations" / "heldout_step_00000002.json").read_text())
    rows = {row["task"]: row["options"] for row in kept["results"]}
    assert rows["shapes, written"]["answer"] == "generate" and "answer" not in rows["shapes, ranked"]


@pytest.mark.parametrize(
    "words",
    [["--probe", "knn", "--views", "3x1"], ["--answer", "generate", "--views", "3x1"], ["--answer", "generate", "--templates", "simple"],
     ["--answer", "speak"], ["--views", "3"], ["--suite", "small", "--split", "test"],
     ["--probe", "knn", "--templates", "simple"], ["--probe", "knn", "--beam", "1"], ["--probe", "knn", "--trials", "2"]],
)  # fmt: skip
def test_ways_that_do_not_go_together(capsys, words):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--run", "r", *words])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ["--tasks", "captions", "--templates", "openai"],
            "--templates changes nothing: it is for classification whose",
        ),
        (
            ["--tasks", "shapes", "sentences", "--beam", "5"],
            "--beam changes nothing: it is for what is written, not for shapes",
        ),
        (["--tasks", "shapes", "--length-penalty", "1"], "--length-penalty changes nothing"),
        (["--tasks", "sentences", "--views", "3x4"], "--views changes nothing"),
        (["--tasks", "shapes", "--meteor"], "--meteor changes nothing: it is for captioning, not for shapes"),
        (["--tasks", "retrieval", "--answer", "generate"], "--answer changes nothing: it is for classification"),
    ],
)
def test_options_that_change_no_task_are_refused(capsys, untrained, words, what):
    assert what in evaluated(capsys, untrained, *words, expect=2)


def test_every_figure_of_samples_has_an_interval(capsys, untrained):
    rows = {row["task"]: row for row in lines_of(evaluated(capsys, untrained, "--limit", "13"))}
    expected = {
        "shapes": {"top5_accuracy", "mean_class_accuracy"},
        "sentences": {"loss", "perplexity"},
        "captions": {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "exact"},
        "retrieval": {f"{way}_{figure}" for way in ("image_to_text", "text_to_image") for figure in ("r5", "r10", "median_rank")}
        | {"text_to_image_r1"},
    }  # fmt: skip
    for name, figures in expected.items():
        row = rows[f"{name}, 13 samples at most"]
        ends = {key.removesuffix("_interval"): pair for key, pair in row.items() if key.endswith("_interval")}
        assert ends.keys() == figures
        for figure, (low, high) in [*ends.items(), (row["figure"], row["interval"])]:
            assert low <= row[figure] <= high, figure


def test_meteor_is_asked_for_and_its_failure_costs_no_other_figure(capsys, untrained, monkeypatch):
    words = ["--tasks", "captions", "--limit", "2", "--meteor"]
    monkeypatch.setattr("run.evaluation.entries.meteor_command", lambda: ["java"])
    monkeypatch.setattr("evaluation.captioning.meteor", lambda *_: 0.25)
    assert json.loads(evaluated(capsys, untrained, *words))["meteor"] == 0.25

    def fail(*_):
        raise MeteorError("METEOR has failed: no memory")

    monkeypatch.setattr("evaluation.captioning.meteor", fail)
    assert main(["--run", str(untrained), *words]) == 0
    out, told = capsys.readouterr()
    assert "meteor" not in json.loads(out) and told.endswith("warning: captions: METEOR has failed: no memory\n")
    monkeypatch.setattr("run.evaluation.entries.meteor_command", fail)
    assert "error: --meteor: METEOR has failed" in evaluated(capsys, untrained, *words, expect=2)


def test_sentences_are_for_pictures_and_clips_alone(untrained):
    """Beside shapes, names of classes of texts are compared as they are."""
    run, _ = read_run(untrained, [])
    texts = dataclasses.replace(run.data.tasks[0], name="texts", kind="text_classification")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(*run.data.tasks, texts)))
    found = entries_of(parse_arguments(["--run", str(untrained), "--templates", "simple"]), run)
    assert {entry.name: entry.templates for entry in found if entry.templates != "none"} == {
        "shapes": "simple",
        "clips": "simple",
    }
    assert found[-1].task.kind == "text_classification"


def test_other_data_and_options_stand_beside_the_run_s_own(capsys, world, tmp_path):
    """Data that was moved is the run's own."""
    own = shutil.copytree(world / "shapes", tmp_path / "own")
    run = saved_run(tiny_config(world, tmp_path), f"data.tasks.shapes.path={own}")
    moved = shutil.copytree(world / "shapes", tmp_path / "moved")
    other = shutil.copytree(world / "shapes", tmp_path / "other")
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    words = ["--split", "heldout", "--limit", "2", "--tasks", "shapes", "sentences"]
    at_other = f"data.tasks.shapes.path={other}"
    for overrides in ([], [f"data.tasks.shapes.path={moved}"], [at_other, "data.tasks.sentences.mask_rate=0.5"]):
        evaluated(capsys, run, *words, *overrides)
    (path,) = (run / "evaluations").glob("*.json")
    few = ", 2 samples at most"
    assert [row["task"] for row in json.loads(path.read_text())["results"]] == [
        f"shapes{few}", f"sentences{few}", f"shapes, other data{few}", f"sentences, mask_rate 0.5{few}",
    ]  # fmt: skip
    shutil.rmtree(own)
    assert lines_of(evaluated(capsys, run, *words, at_other))[0]["task"] == f"shapes{few}"


def test_a_relative_path_is_that_of_the_run_s_own_data(untrained, monkeypatch):
    run, _ = read_run(untrained, [])
    own = dataclasses.replace(run.data.tasks[0], split="mine")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, tasks=(own,)))
    monkeypatch.chdir(Path(own.path).parent)
    for path, split in ((Path(own.path).name, "mine"), ("other", "train"), ("https://host/shapes", "train")):
        asked = dataclasses.replace(own, path=path, split="val")
        assert training_of(Entry("shapes", asked, "none"), run).split == split


def test_a_linear_head_is_not_asked_about_other_data(capsys, world, tmp_path):
    """Its own names are those that it was trained on, not those of the data that is put in their place."""
    config = tiny_config(world, tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["data"]["tasks"] = [task for task in raw["data"]["tasks"] if task["name"] == "shapes"]
    config.write_text(yaml.safe_dump(raw))
    run = saved_run(config, "model.head_classes=6")
    other = shutil.copytree(world / "shapes", tmp_path / "other")
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    words = ["--split", "heldout", "--limit", "2"]
    error = evaluated(capsys, run, *words, f"data.tasks.shapes.path={other}", expect=2)
    assert "shapes: the linear head of tiny knows the 6 classes of task shapes alone" in error
    moved = shutil.copytree(world / "shapes", tmp_path / "moved")
    assert lines_of(evaluated(capsys, run, *words, f"data.tasks.shapes.path={moved}"))[0]["samples"] == 2


def test_classes_of_a_linear_head_are_not_written(untrained):
    run, _ = read_run(untrained, [])
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, head_classes=6))
    with pytest.raises(ConfigError, match="--answer generate: this run has a linear head"):
        entries_of(parse_arguments(["--run", str(untrained), "--tasks", "shapes", "--answer", "generate"]), run)


@pytest.mark.parametrize(
    "words", [["--limit", "3"], ["--beam", "1"], ["--weights", "weight"], ["data.tasks.x.path=/y"], ["--views", "3x1"]]
)
def test_a_comparison_takes_no_options_of_evaluating(capsys, words):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--compare", "a", "b", *words])
    assert caught.value.code == 2 and "changes nothing beside --compare" in capsys.readouterr().err


def test_what_is_there_is_kept_where_a_task_fails(capsys, untrained, world, tmp_path, monkeypatch):
    """The third of five tasks cannot be evaluated: two results are in the file, and a suite's table has been printed."""
    whole = evaluate._evaluated

    def failing(evaluation, *others):
        if evaluation.source.name == "sentences":
            raise NotFiniteError("task sentences: no")
        return whole(evaluation, *others)

    monkeypatch.setattr(evaluate, "_evaluated", failing)
    error = evaluated(capsys, untrained, "--split", "heldout", "--limit", "5", expect=2)
    assert error == "error: task sentences: no\n"
    (path,) = (untrained / "evaluations").glob("heldout_step_*.json")
    names = [row["task"] for row in json.loads(path.read_text())["results"]]
    assert {"shapes, 5 samples at most", "clips, 5 samples at most"} <= set(names)
    assert "sentences, 5 samples at most" not in names
    suite = tmp_path / "two.yaml"
    suite.write_text(
        f"tasks:\n- {{name: shapes, kind: classification, path: {world / 'shapes'}}}\n"
        f"- {{name: sentences, kind: masked_text, path: {world / 'sentences'}}}\n"
    )
    capsys.readouterr()
    assert main(["--run", str(untrained), "--suite", str(suite), "--limit", "5", "--threads", "1"]) == 2
    told = capsys.readouterr()
    assert [line.partition("  ")[0] for line in told.out.splitlines()] == ["task", "shapes, 5 samples at most"]
    done, error = told.err.splitlines()
    assert done.startswith("1 of 2: shapes, 5 samples at most accuracy 0.")
    assert error == f"error: suite task sentences ({world / 'sentences'}): task sentences: no"


def test_a_suite_s_data_is_named_and_other_data_stands_beside_the_usual(capsys, untrained, world, tmp_path):
    suite, other = tmp_path / "films.yaml", shutil.copytree(world / "clips", tmp_path / "other")
    suite.write_text(f"tasks:\n- {{name: films, kind: classification, path: {world / 'clips'}, split: heldout}}\n")
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(info | {"classes": info["classes"][::-1]}))
    words = ["--suite", str(suite), "--limit", "2"]
    evaluated(capsys, untrained, *words)
    evaluated(capsys, untrained, *words, f"films.path={other}")
    kept = json.loads((untrained / "evaluations" / "films_step_00000003.json").read_text())
    rows = {row["task"]: row for row in kept["results"]}
    assert list(rows) == ["films, 2 samples at most", "films, other data, 2 samples at most"]
    assert len({row["asked"] for row in rows.values()}) == 1 and all(row["asked"] for row in rows.values())
    (shard,) = other.glob("heldout-*.tar")
    shard.write_bytes(b"no tar".ljust(shard.stat().st_size))
    error = evaluated(capsys, untrained, *words, f"films.path={other}", expect=2)
    line, told = error.splitlines()
    assert line == "with the options of the run's tasks: films as clips"
    assert told.startswith(f"error: suite task films ({other}): cannot evaluate on ")


def test_results_that_cannot_be_kept_are_printed(capsys, world, tmp_path):
    """Beside a file of another version of this program, which stays."""
    run = saved_run(tiny_config(world, tmp_path))
    path = run / "evaluations" / "heldout_step_00000003.json"
    path.parent.mkdir()
    path.write_text('{"version": 2}')
    words = ["--run", str(run), "--threads", "1", "--split", "heldout", "--limit", "2", "--tasks", "shapes"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert lines_of(told.out)[0]["samples"] == 2 and path.read_text() == '{"version": 2}'
    assert told.err.startswith(f"warning: the results are not kept: {path}: not a kept evaluation of this program")


def test_options_of_the_run_that_change_nothing_are_refused(capsys, untrained):
    for word, said in (
        (
            "data.tasks.shapes.split=heldout",
            "data.tasks.shapes.split changes nothing in an evaluation: name it by --split",
        ),
        ("data.workers=2", "data.workers changes nothing in an evaluation: use --workers"),
    ):
        assert said in evaluated(capsys, untrained, word, expect=2)
