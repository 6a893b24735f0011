"""A score is over all samples of a split, or there is none."""

from __future__ import annotations

import json

import pytest

from data.shards import DatasetError
from data.stream.evaluation import evaluation_pass
from evaluation import DamagedDataError, Evaluation, check_complete
from tests.helpers.models import make, tiny
from tests.helpers.streams import numbered, opened, write_numbered

LAST = "train-000001.tar"


@pytest.fixture
def folder(tmp_path):
    write_numbered(tmp_path, (3, 3))
    return tmp_path


def without_list(folder):
    (folder / "train.shards.json").unlink()
    (folder / f"{LAST}.index.json").unlink()


def without_count(folder):
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"splits": {}}))


def cut(folder):
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:3000])


def page(folder):
    (folder / LAST).write_bytes(b"<!DOCTYPE html><html></html>")


def gone(folder):
    (folder / LAST).unlink()


def test_a_whole_split_passes(folder):
    check_complete(opened(numbered(str(folder))))
    without_list(folder)
    without_count(folder)
    check_complete(opened(numbered(str(folder))))


@pytest.mark.parametrize(
    ("deed", "words", "counted"),
    [
        (cut, "cut off", True),
        (cut, "cut off", False),
        (page, "HTML", True),
        (page, "HTML", False),
        (gone, "shards have 3", True),
    ],
)
def test_a_shard_that_is_not_whole_when_it_is_listed_is_refused(folder, deed, words, counted):
    without_list(folder)
    deed(folder)
    if not counted:
        without_count(folder)
    with pytest.raises(
        DatasetError, match=rf"a part of the data: task numbers: .*of 6 samples.*{words}.*lint"
    ) as caught:
        check_complete(opened(numbered(str(folder))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("deed", "words"), [(cut, "cut off"), (page, "HTML"), (gone, "No such file")])
def test_a_shard_that_is_not_whole_when_it_is_read_is_refused(folder, deed, words):
    deed(folder)
    source = opened(numbered(str(folder)))
    check_complete(source)  # the list says so
    assert sum(len(batch.examples) for batch in evaluation_pass(source, 2)) < 6
    evaluation = Evaluation(make(tiny(max_text=8), source.task.vocabulary.size), source, batch_size=2)
    with pytest.raises(DamagedDataError, match=rf"task numbers, {LAST}: .*{words}") as caught:
        list(evaluation.batches())
    assert "None" not in str(caught.value)


def test_an_index_that_does_not_fit_loses_nothing(folder):
    (folder / "train.shards.json").unlink()
    (folder / f"{LAST}.index.json").write_text("{}")
    source = opened(numbered(str(folder)))
    check_complete(source)
    without_count(folder)
    check_complete(opened(numbered(str(folder))))
