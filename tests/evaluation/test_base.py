"""A score is over all samples of a split, or there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.decode.image import encode_png
from data.shards import BadShard, DatasetError, ShardSet, write_shard
from data.stream.evaluation import evaluation_pass
from data.stream.faults import StoreGoneError
from evaluation import DamagedDataError, Evaluation, check_complete
from evaluation.kept import asked_of
from run.errors import exit_code
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
    with pytest.raises(
        DamagedDataError, match=rf"task numbers, {LAST}: .*{words}.*; `python -m data.inspect lint {folder}`"
    ) as caught:
        list(evaluation.batches())
    assert "None" not in str(caught.value) and exit_code(caught.value) == 2


def compared(folder, max_bad_fraction: float) -> Evaluation:
    source = opened(numbered(str(folder)))
    objective = make(tiny(max_text=8), source.task.vocabulary.size)
    return Evaluation(objective, source, source, batch_size=2, max_bad_fraction=max_bad_fraction)


def test_a_store_that_is_away_ends_with_1(folder, monkeypatch):
    def away(self: ShardSet, shard: int, index: int):
        raise BadShard("http://store/train-000000.tar: HTTP 503", may_pass=True)

    evaluation = compared(folder, 1.0)
    monkeypatch.setattr(ShardSet, "read", away)
    for passed in (evaluation.batches(), evaluation.training_examples()):
        with pytest.raises(
            StoreGoneError, match=r"a store does not answer: task numbers, train-000000.tar of .*503; start"
        ) as caught:
            next(passed)
        assert exit_code(caught.value) == 1


def test_training_samples_that_cannot_be_read_count_against_the_limit_of_training(folder):
    """Three of six when they are read, and the same three where they are known to be missing before."""
    cut_off = (folder / LAST).read_bytes()[:500]
    (folder / LAST).write_bytes(cut_off)
    assert sum(1 for _ in compared(folder, 0.5).training_examples()) == 3
    with pytest.raises(
        DatasetError,
        match=rf"^task numbers: 3 of 6 training samples cannot be read, the first {LAST}: .*=0.4 allows",
    ):
        list(compared(folder, 0.4).training_examples())
    with pytest.raises(DatasetError, match="3 of 40 training samples"):  # three unreadable labels of 40
        list(compared(folder, 0.05).training_passed(opened(numbered(str(folder))), np.arange(3, 6), 40))
    without_list(folder)
    assert sum(1 for _ in compared(folder, 0.5).training_examples()) == 3
    with pytest.raises(
        DatasetError, match=r"task numbers: .*3 of 6 samples.*more than data.max_bad_fraction=0.4 allows"
    ):
        list(compared(folder, 0.4).training_examples())


def test_what_was_missing_at_the_start_and_what_cannot_be_read_are_one_limit(folder):
    """A third shard is known to be gone: a third of nine samples, and with another sample four ninths."""
    write_numbered(folder, (3, 3, 3))
    (folder / "train-000002.tar").unlink()
    (folder / "train-000002.tar.index.json").unlink()
    (folder / "train.shards.json").unlink()
    content = bytearray((folder / LAST).read_bytes())
    place = content.index(b"IHDR")  # of the fourth picture
    content[place : place + 4] = b"none"
    (folder / LAST).write_bytes(content)
    assert sum(1 for _ in compared(folder, 0.45).training_examples()) == 5
    with pytest.raises(
        DatasetError, match="1 of 6 training samples cannot be read beside what was missing when shards were listed"
    ):
        list(compared(folder, 0.4).training_examples())


def test_an_index_that_does_not_fit_loses_nothing(folder):
    (folder / "train.shards.json").unlink()
    (folder / f"{LAST}.index.json").write_text("{}")
    source = opened(numbered(str(folder)))
    check_complete(source)
    without_count(folder)
    check_complete(opened(numbered(str(folder))))


def test_what_is_asked_for_is_told_apart_however_it_is_read(folder):
    """Two of six labels change places: shards are as large as before, so their digest is the same."""

    def asked(place, batch_size: int = 2, limit: int | None = None) -> tuple[str, str]:
        source = opened(numbered(str(place)))
        evaluation = Evaluation(
            make(tiny(max_text=8), source.task.vocabulary.size), source, batch_size=batch_size, limit=limit
        )
        assert asked_of(evaluation) == ""
        list(evaluation.batches())
        return source.digest, asked_of(evaluation)

    other = folder / "other"
    write_numbered(other, (3, 3))
    pictures = {i: encode_png(np.full((8, 8, 3), i, np.uint8)) for i in (3, 4, 5)}
    write_shard(
        other / LAST, [{"__key__": f"{i:05d}", "png": pictures[i], "cls": cls} for i, cls in ((3, 4), (4, 3), (5, 5))]
    )
    assert asked(folder) == asked(folder, 4) != asked(folder, limit=3)
    assert asked(folder)[0] == asked(other)[0] and asked(folder)[1] != asked(other)[1]
