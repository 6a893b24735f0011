"""predict.py on a small trained run: the answers are those that evaluation scores."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml

from data.shards import DatasetError, ShardSet, read_info
from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation import EVALUATORS, Evaluation, captioning
from model.exchange.export.__main__ import main as export
from predict import main, parse_arguments
from prediction import Predictor, load, media_of
from prediction.index import Index
from run.config_file import load_config
from run.errors import ConfigError
from run.folder import write_data_sets
from tests.helpers.runs import asking_config, saved_run, tiny_config


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """(run folder, its configuration): weights as a run starts with, kept as its checkpoint of step 3."""
    path = tiny_config(world, tmp_path_factory.mktemp("predict"))
    return saved_run(path), path


@pytest.fixture(scope="module")
def model(trained) -> Predictor:
    torch.set_num_threads(1)
    return load(str(trained[0]), batch_size=5)


def evaluation_of(model: Predictor, trained, task: str) -> Evaluation:
    run = load_config(trained[1], [f"data.tasks.{task}.split=val"])
    sources = open_data(run.data, Pixels(run.model.image_size, run.model.patch), 0, model.vocabulary).sources
    (source,) = [source for source in sources if source.name == task]
    return Evaluation(model.objective, source, batch_size=8)


def shard_of(world, name: str) -> str:
    return str(world / name / "val-000000.tar")


@pytest.mark.parametrize("task", ["shapes", "clips"])
def test_classes_are_those_that_evaluation_counts(model, trained, world, task):
    labels = [int(ShardSet.open(world / task, "val").read(0, i)["cls"]) for i in range(16)]
    classes = read_info(world / task).classes
    answers = [choices for _, choices in model.classify(media_of([shard_of(world, task)]), top=6)]
    right = [choices[0].text == classes[label] for choices, label in zip(answers, labels, strict=True)]
    metrics = EVALUATORS["classification"].evaluate(evaluation_of(model, trained, task)).metrics
    assert sum(right) / len(right) == pytest.approx(metrics["accuracy"])
    for choices in answers:
        assert sum(choice.probability for choice in choices) == pytest.approx(1, abs=1e-5)
        assert sorted(choice.text for choice in choices) == sorted(classes)


def test_names_of_the_data_set_are_the_default(trained, world, capsys):
    assert (
        main(
            [
                "classify",
                "--run",
                str(trained[0]),
                "--task",
                "clips",
                "--files",
                shard_of(world, "clips"),
                "--top",
                "1",
                "--json",
            ]
        )
        == 0
    )
    named = {json.loads(line)["classes"][0]["class"] for line in capsys.readouterr().out.splitlines()}
    assert named <= set(read_info(world / "clips").classes)


def test_captions_are_those_that_evaluation_scores(model, trained, world):
    expected, _ = captioning.generate(evaluation_of(model, trained, "captions"))
    assert [caption for _, caption in model.caption(media_of([shard_of(world, "pairs")]))] == expected


def test_similarities_are_those_that_evaluation_ranks_by(model, trained, world):
    shards = ShardSet.open(world / "pairs", "val")
    texts = [json.loads(shards.read(0, i)["json"])["captions"][0] for i in range(8)]
    vectors = torch.stack([vector for _, vector in model.embed(media_of([shard_of(world, "pairs")]))])
    evaluation = evaluation_of(model, trained, "retrieval")
    (examples, _), *_ = evaluation.batches()
    batch = evaluation.source.task.batch(examples, None)
    with torch.no_grad():
        images_QD, _ = model.objective.encode(batch.inputs, batch.read_Q2, task="retrieval")
        texts_CD = model.objective.encode_candidates(batch.candidates, task="retrieval")[0]
    expected = torch.nn.functional.normalize(images_QD, dim=-1) @ torch.nn.functional.normalize(texts_CD, dim=-1).T
    assert torch.allclose(vectors[:8] @ model.embed_texts(texts).T, expected, atol=1e-5)


def test_gaps_are_filled_and_texts_without_one_refused(model):
    (first, second), (third,) = model.fill(["the red ___ is left of the ___", "___ circle"], top=3)
    assert len(first) == len(second) == len(third) == 3
    assert first[0].probability >= first[1].probability >= first[2].probability > 0
    with pytest.raises(DatasetError, match="has no gap: write ___"):
        model.fill(["no gap"])
    with pytest.raises(DatasetError, match="more than the 32 tokens"):
        model.fill(["___" + " red" * 40])


def test_the_commands(trained, world, tmp_path, capsys):
    run, _ = trained
    shard = shard_of(world, "shapes")
    (tmp_path / "bad.png").write_bytes(b"no image")
    words = ["classify", "--run", str(run), "--classes", "red circle", "blue star", "--json", "--files", shard]
    assert main([*words, str(tmp_path / "bad.png"), "nothing.jpg"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 16 and {c["class"] for c in lines[0]["classes"]} == {"red circle", "blue star"}
    assert "cannot be read: nothing.jpg: no such file" in err and "bad.png: image of 8 bytes" in err

    index = tmp_path / "index.npz"
    assert main(["embed", "--run", str(run), "--files", shard, "--out", str(index)]) == 0
    capsys.readouterr()
    assert (
        main(["retrieve", "--run", str(run), "--query", "a red circle", "--index", str(index), "--top", "2", "--json"])
        == 0
    )
    by_index = json.loads(capsys.readouterr().out)
    assert (
        main(["retrieve", "--run", str(run), "--query", "a red circle", "--files", shard, "--top", "2", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == by_index and len(by_index["files"]) == 2
    assert (
        main(
            [
                "retrieve",
                "--run",
                str(run),
                "--by-file",
                "--query",
                shard,
                "--index",
                str(index),
                "--top",
                "1",
                "--json",
            ]
        )
        == 0
    )
    for line in capsys.readouterr().out.splitlines():
        found = json.loads(line)
        assert found["files"][0]["similarity"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fill", "--texts", "no gap"], "has no gap"),
        (["classify", "--classes", "one", "--files", "x.png"], "two names at least"),
        (["classify", "--classes", "@/dev/null", "--files", "x.png"], "two names at least"),
        (["classify", "--classes", "cat", "Cat", "--files", "SHARD"], "are one to the model"),
        (["classify", "--classes", "cat", "cat", "--files", "SHARD"], "classes (--classes): 'cat' is named twice"),
        (["classify", "--classes", "@nothing.txt", "--files", "x.png"], "nothing.txt: No such file"),
        (
            ["caption", "--task", "shapes", "--files", "SHARD"],
            "shapes cannot serve as captioning; its tasks are shapes (classification)",
        ),
        (["retrieve", "--query", "a", "--index", "SHARD"], "no index of `predict.py embed`"),
        (["embed", "--files", "nothing.png", "--out", "x.npz"], "none of nothing.png can be read"),
        (["caption", "--step", "9", "--files", "x.png"], "no checkpoint of step 9; there are 3"),
    ],
)
def test_what_cannot_be_done_is_one_line(trained, world, capsys, words, said):
    words = [shard_of(world, "shapes") if word == "SHARD" else word for word in words]
    assert main([words[0], "--run", str(trained[0]), *words[1:]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said in error


def test_an_index_of_other_weights_is_refused(trained, world, tmp_path, capsys):
    """Other weights give another vector to the same sentence, so similarities between the two would mean nothing."""
    run, path = trained
    other = saved_run(path, "name=other", "seed=1")
    index = tmp_path / "i.npz"
    assert main(["embed", "--run", str(other), "--files", shard_of(world, "shapes"), "--out", str(index)]) == 0
    query = ["retrieve", "--query", "a", "--index", str(index)]
    assert main([*query, "--run", str(other)]) == 0
    assert main([*query, "--run", str(run)]) == 2
    assert (
        "made by other weights (step 3, here 3) or for another --task: embed the files again" in capsys.readouterr().err
    )
    with np.load(index) as content:
        parts = dict(content)
    np.savez(index, **parts | {"vectors": np.ones((1, 7), np.float32)})
    assert main([*query, "--run", str(other)]) == 2
    assert "names and vectors do not go together" in capsys.readouterr().err
    del parts["clips"]
    np.savez(index, **parts)
    assert main([*query, "--run", str(other)]) == 2
    assert "no index of `predict.py embed`, or of an older version" in capsys.readouterr().err


def test_an_index_of_another_image_side_is_refused(model, tmp_path):
    """Tuning may leave the text side as it was: a text has the same vector, and those of files mean nothing."""
    index = Index(["a.png"], np.ones((1, 32), np.float32), np.array([False]))
    index.write(tmp_path / "i.npz", model, "")
    assert Index.read(tmp_path / "i.npz", model, "").names == ["a.png"]
    tuned = dataclasses.replace(model, objective=copy.deepcopy(model.objective))
    with torch.no_grad():
        tuned.objective.tower.embedding.patches.weight.neg_()
    assert torch.equal(tuned.embed_texts(["a picture"]), model.embed_texts(["a picture"]))
    with pytest.raises(DatasetError, match="made by other weights"):
        Index.read(tmp_path / "i.npz", tuned, "")
    with np.load(tmp_path / "i.npz") as content:
        np.savez(tmp_path / "old.npz", **{name: content[name] for name in content if name != "picture"})
    with pytest.raises(DatasetError, match=r"of an older version .*picture.*: embed the files again"):
        Index.read(tmp_path / "old.npz", model, "")


def test_texts_are_compared_with_clips_as_the_task_of_clips_does(model, monkeypatch):
    """Two images and a clip: a text has one vector for images, another for clips, and the nearest of all come first."""
    vectors_ND = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.float32)
    index = Index(["a.png", "b.png", "c.mp4"], vectors_ND, np.array([False, False, True]))

    def embed_texts(self, texts, task="", of_clips=False):
        return torch.tensor([[0.0, 1.0] if of_clips else [1.0, 0.0]] * len(texts))

    monkeypatch.setattr(Predictor, "embed_texts", embed_texts)
    (found,) = index.by_texts(model, ["x"], 2, "")
    assert found == [(0, 1.0), (2, 1.0)]
    assert index.by_vectors(np.array([[0.0, 1.0]], np.float32), 3) == [[(2, 1.0), (1, pytest.approx(0.8)), (0, 0.0)]]


def test_names_that_are_written_are_captions(trained, world, tmp_path):
    """A task with `answer: generate` never learned to compare names."""
    path = tiny_config(world, tmp_path)
    raw = yaml.safe_load(path.read_text())
    raw["data"]["tasks"] = [task | {"answer": "generate"} for task in raw["data"]["tasks"] if task["name"] == "shapes"]
    path.write_text(yaml.safe_dump(raw))
    model = load(str(saved_run(path)))
    with pytest.raises(DatasetError, match=r"has learned to write its names .* `caption` with --task shapes"):
        list(model.classify(media_of([shard_of(world, "shapes")])))
    # Where another task can serve, it does.
    tasks = (*model.data.tasks, dataclasses.replace(model.data.tasks[0], name="pairs", kind="retrieval", answer="rank"))
    both = dataclasses.replace(model, data=dataclasses.replace(model.data, tasks=tasks))
    shard = [shard_of(world, "shapes")]
    assert len(list(both.classify(media_of(shard), ["red circle", "blue star"]))) == 16
    written = evaluate_written(model, path)
    assert [caption for _, caption in model.caption(media_of([shard_of(world, "shapes")]), task="shapes")] == written


def evaluate_written(model: Predictor, path) -> list[str]:
    evaluation = evaluation_of(model, (None, path), "shapes")
    length = evaluation.source.task.config.max_text
    return [text for text, _ in captioning.written(evaluation, length, lambda example: example.label)]


def test_the_data_need_not_be_there(trained, tmp_path, world):
    copy = tmp_path / "elsewhere"
    shutil.copytree(trained[0], copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for task in config["data"]["tasks"]:
        task["path"] = "/nowhere"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    model = load(str(copy))
    with pytest.raises(DatasetError, match="which of the tasks shapes, clips is one of images is not known"):
        list(model.classify(media_of([shard_of(world, "shapes")])))
    with pytest.raises(DatasetError, match="the class names of its data set are not there: say them"):
        list(model.classify(media_of([shard_of(world, "shapes")]), task="shapes"))
    assert len(list(model.classify(media_of([shard_of(world, "shapes")]), ["circle", "square"], task="shapes"))) == 16
    write_data_sets(copy, {name: read_info(world / name) for name in ("shapes", "clips")})
    assert len(list(load(str(copy)).classify(media_of([shard_of(world, "shapes")])))) == 16


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    """A run of sentences with a class, and of questions about pictures: (folder, its tasks' data sets beside it)."""
    folder = tmp_path_factory.mktemp("asked")
    return saved_run(asking_config(world, folder), noise=0.1), folder


def test_answers_that_were_written_are_not_ranked(asked, capsys):
    """Nor does masked text or captions take their place."""
    folder = asked[1]
    changes = [f"data.tasks.{task}.answer=generate" for task in ("sst2", "vqa")]
    run = saved_run(folder / "tiny.yaml", *changes, "name=written", noise=0.1)
    shard, texts = str(folder / "vqa" / "train-000000.tar"), ["--texts", "a red circle"]
    for task, words in (
        ("sst2", ["classify", *texts, "--classes", "bad", "good"]),
        ("vqa", ["answer", "--files", shard, "--question", "what is it?"]),
    ):
        assert main([words[0], "--run", str(run), *words[1:]]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"task {task} has learned to write its answers (answer: generate), which `evaluate.py` alone" in error


def lines_of(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_are_classified_and_embedded_wherever_they_stand(asked, tmp_path, capsys):
    run, folder = asked
    (tmp_path / "t.txt").write_text("a red circle 0\n\na red circle 1\n", encoding="utf-8")
    command = ["classify", "--run", str(run), "--task", "sst2", "--json", "--top", "2"]
    said = []
    for words in (
        ["--texts", "a red circle 0", "a red circle 1"],
        ["--texts", f"@{tmp_path / 't.txt'}"],
        ["--files", str(tmp_path / "t.txt")],
        ["--files", str(folder / "sst2" / "train-000000.tar")],
    ):
        assert main([*command, *words]) == 0
        said.append([row["classes"] for row in lines_of(capsys)][:2])
    assert said[0] == said[1] == said[2] == said[3] and {c["class"] for c in said[0][0]} == {"bad", "good"}
    index = tmp_path / "i.npz"
    assert main(["embed", "--run", str(run), "--texts", "a red circle", "a star", "--out", str(index)]) == 0
    with np.load(index) as content:
        assert content["names"].tolist() == ["a red circle", "a star"]
        assert np.allclose(
            content["vectors"], load(str(run)).embed_texts(["a red circle", "a star"]).numpy(), atol=1e-6
        )


def test_answers_are_those_that_evaluation_scores(asked, world, capsys):
    run, folder = asked
    shard, question = str(folder / "vqa" / "train-000000.tar"), "what is it?"
    assert main(["answer", "--run", str(run), "--files", shard, "--question", question, "--json"]) == 0
    rows = lines_of(capsys)
    assert len(rows) == 6 and {c["answer"] for c in rows[0]["answers"]} == {"circle", "star"}
    config = load_config(folder / "tiny.yaml")
    model = load(str(run))
    sources = open_data(config.data, Pixels(config.model.image_size, config.model.patch), 0, model.vocabulary).sources
    (source,) = [source for source in sources if source.name == "vqa"]
    metrics = EVALUATORS["vqa"].evaluate(Evaluation(model.objective, source, batch_size=6)).metrics
    circles = sum(row["answers"][0]["answer"] == "circle" for row in rows)
    assert (circles > 0) == (metrics["vqa_accuracy"] > 0)
    both = [
        *("answer", "--run", str(run), "--files", shard, "--question", question),
        "--answers",
        "red",
        "blue",
        "--json",
    ]
    assert main(both) == 0 and {c["answer"] for c in lines_of(capsys)[0]["answers"]} == {"red", "blue"}


@pytest.mark.parametrize("merged", [False, True])
def test_tasks_of_texts_and_questions_are_asked_of_an_export_as_of_the_run(asked, tmp_path, capsys, merged):
    run, folder = asked
    shard = str(folder / "vqa" / "train-000000.tar")
    questions = {
        "sst2": ["classify", "--task", "sst2", "--texts", "a red circle 0", "a red circle 1"],
        "vqa": ["answer", "--task", "vqa", "--files", shard, "--question", "what is it?"],
    }
    for task, (command, *words) in questions.items():
        out = tmp_path / task
        assert export(["--run", str(run), "--out", str(out), *(["--task", task] if merged else [])]) == 0
        capsys.readouterr()
        said = []
        for place in (str(run), str(out)):
            assert main([command, "--model", place, "--json", "--top", "2", *words]) == 0
            said.append([list(row.values())[-1] for row in lines_of(capsys)])
        assert len(said[0]) == {"sst2": 2, "vqa": 6}[task]
        for ours, theirs in zip(*said, strict=True):
            by_name = ({next(iter(c.values())): c["probability"] for c in row} for row in (ours, theirs))
            assert next(by_name) == pytest.approx(next(by_name), abs=1e-6)


def test_a_model_is_a_run_or_an_export_and_a_run_knows_its_best(trained, world, tmp_path, capsys):
    run, shard = str(trained[0]), shard_of(world, "shapes")
    assert export(["--run", run, "--out", str(tmp_path / "e")]) == 0
    capsys.readouterr()
    said = []
    for place in (run, str(tmp_path / "e")):
        assert main(["classify", "--model", place, "--files", shard, "--task", "shapes", "--json"]) == 0
        said.append(lines_of(capsys))
    assert said[0] == said[1] and load(str(tmp_path / "e")).step == load(run, 3).step == 3
    assert main(["classify", "--model", str(tmp_path / "e"), "--step", "3", "--files", shard]) == 2
    assert "chooses among the checkpoints of a run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="best"):  # it was never evaluated while training
        load(run, "best")


def test_one_text_that_cannot_be_filled_ends_no_other(trained, capsys):
    texts = ["___" + " red" * 40, "a ____ star"]
    assert main(["fill", "--run", str(trained[0]), "--texts", *texts, "--json"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a ____ star"] and "more than the 32" in err


def rows_of(path) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_a_table_has_what_json_lines_have(trained, world, tmp_path, capsys):
    shard, table, index = shard_of(world, "shapes"), tmp_path / "t.parquet", tmp_path / "index.npz"
    commands = [
        ["classify", "--classes", "red circle", "blue star", "--files", shard],
        ["caption", "--files", shard],
        ["retrieve", "--query", "a red circle", "a star", "--files", shard],
        ["fill", "--texts", "the red ___ is left of the ___", "a ___"],
    ]
    for command, *words in commands:
        run = [command, "--run", str(trained[0]), "--threads", "1", *words]
        assert main([*run, "--json"]) == main([*run, "--parquet", str(table)]) == 0
        *lines, said = capsys.readouterr().out.splitlines()
        assert said == f"{table}: {len(lines)} rows" and len(lines) >= 2
        assert rows_of(table) == [json.loads(line) for line in lines]
    embed = ["embed", "--run", str(trained[0]), "--files", shard, "--parquet", str(table), "--out", str(index)]
    assert main(embed) == 0
    with np.load(index) as content:
        assert [row["file"] for row in rows_of(table)] == content["names"].tolist()
        assert np.array_equal(np.array([row["vector"] for row in rows_of(table)], np.float32), content["vectors"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere/t.parquet", "there is no folder"),
        (".", "is a folder: name a file"),
        ("/dev/stdout", "is no plain file"),
        ("t.parquet", "writing it needs pyarrow: EXTRAS="),
    ],
)
def test_a_table_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys, path, said):
    if path == "t.parquet":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.chdir(tmp_path)
    assert main(["caption", "--run", "nothing", "--files", "x.png", "--parquet", path]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["embed", "--files", "x"], ["caption", "--files", "x", "--json", "--parquet", "t"]])
def test_an_answer_needs_one_place(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--run", "r"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "words", [["retrieve", "--files", "x", "--query"], ["classify", "--files", "x", "--classes"], ["fill", "--texts"]]
)
def test_texts_that_are_no_utf8_are_refused_before_the_work(capsys, words):
    """No table could hold them. Names of files are another matter."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "a", "caf\udce9", "--run", "r", "--parquet", "t"])
    assert caught.value.code == 2 and "'caf\\udce9' has bytes that are no UTF-8" in capsys.readouterr().err
    for files in (["retrieve", "--by-file", "--files", "x", "--query"], ["classify", "--files", "x", "--classes"]):
        assert parse_arguments([*files, "@caf\udce9", "--run", "r"])


def test_without_standard_error_nothing_else_comes_among_the_answers(trained, world, capsys, monkeypatch):
    """Started with `2>&-`."""
    monkeypatch.setattr(sys, "stderr", None)
    files = ["--files", "nothing.png", shard_of(world, "shapes")]
    assert main(["caption", "--run", str(trained[0]), "--json", *files]) == 1
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 16
    assert main(["caption", "--run", "nothing", "--files", "x.png"]) == 2 and not capsys.readouterr().out
