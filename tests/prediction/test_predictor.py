"""Questions in Python: one text in place of a list, and class names of a linear head whose data set is gone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from data.config import DataConfig, TaskConfig
from data.decode.image import decode_image
from data.shards import DatasetError, DatasetInfo
from data.tasks.base import Pixels
from evaluation.encoding import encode_rows
from model.exchange.export.__main__ import main
from model.exchange.export.modeling_sparse_generalist import SparseGeneralistModel
from prediction import Predictor, load, media_of, predictor
from tests.helpers.runs import saved_run, tiny_config


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run with a linear head for the six classes of its only task."""
    config = tiny_config(world, tmp_path_factory.mktemp("predictor"))
    raw = yaml.safe_load(config.read_text())
    raw["data"]["tasks"] = [task for task in raw["data"]["tasks"] if task["name"] == "shapes"]
    config.write_text(yaml.safe_dump(raw))
    return saved_run(config, "model.head_classes=6", noise=0.1)


@pytest.fixture(scope="module")
def model(run) -> Predictor:
    torch.set_num_threads(1)
    return load(str(run))


def test_one_text_is_no_list_of_letters(model, world):
    assert torch.equal(model.embed_texts("a red circle"), model.embed_texts(["a red circle"]))
    with pytest.raises(DatasetError, match="classes='red blue' is one text: give a list of names"):
        list(model.classify(media_of([str(world / "shapes" / "val-000000.tar")]), "red blue"))


def test_a_head_takes_its_classes_from_the_user_where_the_data_set_is_gone(model, world):
    shard, names = str(world / "shapes" / "val-000000.tar"), model.infos["shapes"].classes
    gone = dataclasses.replace(model, infos={})
    expected = [choices for _, choices in model.classify(media_of([shard]))]
    assert [choices for _, choices in gone.classify(media_of([shard]), names)] == expected
    with pytest.raises(DatasetError, match="are not there: say them: all 6, in the order of training"):
        list(gone.classify(media_of([shard])))
    for asked, classes in ((gone, names[:5]), (model, names[::-1])):
        with pytest.raises(DatasetError, match="knows the 6 classes that it was trained on, in their order"):
            list(asked.classify(media_of([shard]), classes))


def test_an_export_does_the_same(run, model, tmp_path):
    assert main(["--run", str(run), "--out", str(tmp_path / "export")]) == 0
    exported = SparseGeneralistModel.load(tmp_path / "export")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected, names = exported.classify(pixels), exported.classes()
    assert names == list(model.infos["shapes"].classes)
    assert torch.equal(exported.encode_text("a red circle"), exported.encode_text(["a red circle"]))
    with pytest.raises(ValueError, match="is one text"):
        exported.classify(pixels, "red blue")
    exported.config.tasks[0]["classes"] = []
    assert torch.equal(exported.classify(pixels, names), expected)
    with pytest.raises(ValueError, match="say them: all 6, in the order of training"):
        exported.classify(pixels)
    with pytest.raises(ValueError, match="knows the 6 classes"):
        exported.classify(pixels, names[:5])


@pytest.mark.parametrize(("task", "scale"), [("retrieval", "retrieval"), ("captions", "caption"), ("clips", "video")])
def test_classes_are_compared_by_the_scale_that_was_trained(world, tmp_path, task, scale):
    """A run of one task on one kind of data is asked for classes of images: p = softmax(scale * cosine), with its only scale at 2."""
    config = tiny_config(world, tmp_path)
    raw = yaml.safe_load(config.read_text())
    raw["data"]["tasks"] = [option for option in raw["data"]["tasks"] if option["name"] == task]
    config.write_text(yaml.safe_dump(raw))
    run = saved_run(config, f"model.temperatures=[{scale}]", "model.initial_scale=2")
    model, names = load(str(run)), ["red circle", "blue star"]
    image, *_ = media_of([str(world / "shapes" / "val-000000.tar")])
    ((_, choices),) = model.classify([image], names)
    made = model._task("classification", "", "image", tuple(names))
    assert made.temperature == scale
    names_2D = encode_rows(model.objective, made.candidates, task, "cpu")
    feature_D, *_ = [feature_D for _, feature_D, _ in model._encoded([image], "classification", "", tuple(names))]
    expected = (2 * torch.cosine_similarity(feature_D[None], names_2D)).softmax(dim=0).tolist()
    found = {choice.text: choice.probability for choice in choices}
    assert [found[name] for name in names] == pytest.approx(expected, abs=1e-5)
    assert main(["--run", str(run), "--out", str(tmp_path / "export")]) == 0
    exported = SparseGeneralistModel.load(tmp_path / "export")
    picture = decode_image(image.content)
    (probabilities,) = exported.classify([picture], names).tolist()
    assert probabilities == pytest.approx(expected, abs=1e-5)


def test_names_that_are_one_to_the_model_are_told(model, world):
    image = list(media_of([str(world / "shapes" / "val-000000.tar")]))[:1]
    with pytest.raises(DatasetError, match=r"classes \(--classes\): 'cat' is named twice: name it once"):
        list(model.classify(image, ["cat", "dog", "cat"]))
    with pytest.raises(
        DatasetError, match=r"classes \(--classes\): 'cat' and 'Cat' are one to the model, .* leave one out"
    ):
        list(model.classify(image, ["cat", "Cat"]))


def test_clips_take_the_options_of_the_task_of_clips_or_nobody_knows_which():
    """Of two classifiers the one of the medium serves. Where neither's data set is known, the first would give a clip an image's frames."""
    options = {"kind": "classification", "path": "s3://bucket/data"}
    tasks = (TaskConfig(name="images", **options), TaskConfig(name="clips", num_frames=8, **options))
    infos = {
        name: DatasetInfo(kind=kind, classes=("a", "b"), token_ids=(), splits={})
        for name, kind in (("images", "image_class"), ("clips", "video_class"))
    }

    def chosen(*known: str, name: str = "") -> str:
        about = {task: infos[task] for task in known}
        model = Predictor(None, None, DataConfig(tasks=tasks), about, Pixels(32, 8), 1)  # type: ignore[arg-type]
        return model._config("classification", name, "video").name

    assert chosen("images", "clips") == chosen("images") == chosen("clips") == chosen(name="clips") == "clips"
    with pytest.raises(
        DatasetError, match=r"which of the tasks images, clips is one of videos is not known.*\(--task\)"
    ):
        chosen()


@pytest.mark.parametrize("kind", ["text_classification", "vqa"])
def test_a_task_that_compares_comes_before_one_that_writes(kind):
    """And where none does, the one that writes is refused: no related task takes its place."""
    writes = TaskConfig(name="writes", kind=kind, path="a", answer="generate")
    compares = TaskConfig(name="compares", kind=kind, path="a")
    others = TaskConfig(name="text", kind="masked_text", path="a"), TaskConfig(name="says", kind="captioning", path="a")

    def predictor_of(*tasks: TaskConfig) -> Predictor:
        return Predictor(None, None, DataConfig(tasks=tasks), {}, Pixels(32, 8), 1)  # type: ignore[arg-type]

    assert predictor_of(*others, writes, compares)._config(kind, "", "text").name == "compares"
    with pytest.raises(DatasetError, match="task writes has learned to write its answers"):
        predictor_of(*others, writes)._task(kind, "", "text", ("a", "b"))


def test_three_underscores_or_more_are_a_gap_and_a_long_text_stops_no_other(world, tmp_path):
    model = load(str(saved_run(tiny_config(world, tmp_path), noise=0.1)))
    first, second = model.fill(["the red ___ star", "the red ______ star"], top=3)
    assert [c.text for c in first[0]] == [c.text for c in second[0]] and len(second) == 1
    texts = ["a ____", "___" + " red" * 40, "no gap", "___ star"]
    found = list(model.filled(texts))
    assert [gaps is None for _, gaps in found] == [False, True, True, False]
    assert "more than the 32 tokens" in found[1][0].fault and "has no gap" in found[2][0].fault


def test_gaps_are_filled_in_batches(world, tmp_path, monkeypatch):
    model, sizes = load(str(saved_run(tiny_config(world, tmp_path), noise=0.1))), []
    texts = ["a ___", "the red ___ is left of the ___", "___ star"]
    whole = model.fill(texts)
    encode = predictor.encode_inputs

    def counted(objective, inputs, read_Q2, task):
        sizes.append(inputs.num_rows)
        return encode(objective, inputs, read_Q2, task)

    monkeypatch.setattr(predictor, "encode_inputs", counted)
    parts = dataclasses.replace(model, batch_size=2).fill(texts)
    assert sizes == [2, 1]
    assert [[[c.text for c in gap] for gap in gaps] for gaps in parts] == [
        [[c.text for c in gap] for gap in gaps] for gaps in whole
    ]


@pytest.mark.parametrize("of_clips", [False, True])
def test_the_pattern_tells_weights_of_the_image_side(world, tmp_path, of_clips):
    model = load(str(saved_run(tiny_config(world, tmp_path), noise=0.1)))
    before_D, text_1D = model.embed_pattern(of_clips=of_clips), model.embed_texts(["a"])
    assert before_D.norm() == pytest.approx(1) and torch.equal(before_D, model.embed_pattern(of_clips=of_clips))
    with torch.no_grad():
        model.objective.tower.embedding.patches.weight.neg_()
    assert torch.equal(model.embed_texts(["a"]), text_1D) and before_D @ model.embed_pattern(of_clips=of_clips) < 0.999
