"""Questions in Python: one text in place of a list, and class names of a linear head whose data set is gone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from data.shards import DatasetError
from model.exchange.export.__main__ import main
from model.exchange.export.modeling_sparse_generalist import SparseGeneralistModel
from prediction import Predictor, load, media_of
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
