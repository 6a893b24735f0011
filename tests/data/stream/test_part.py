"""Training on a part of a data set."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, TaskConfig
from data.shards import BadSample, BadShard, DatasetError, DatasetInfo, ShardSet, write_info, write_shards
from data.shards.lists import ShardList
from data.stream.faults import loss_of
from data.stream.part import PartOrder, _kept, labels_of
from data.stream.source import open_data
from data.tasks import check_tasks
from data.tasks.base import Pixels, label_of
from data.transport import TransientError
from data.transport.cache import Cache
from run.errors import exit_code, is_told_here


def test_an_epoch_has_the_chosen_samples_once():
    """Places 1, 2, 5 and 9 of shards with 3, 4 and 3 samples are (0, 1), (0, 2), (1, 2) and (2, 2)."""
    order = PartOrder([3, 4, 3], np.array([1, 2, 5, 9]), seed=0, window=4)
    expected = [(0, 1), (0, 2), (1, 2), (2, 2)]
    for epoch in range(3):
        assert sorted(order.locate(4 * epoch + position) for position in range(4)) == expected
    assert order.total == 4
    assert order.shards_near(0) == (0, 1, 2)
    near = PartOrder([3, 4, 3], np.array([1, 2, 5, 9]), seed=0, window=1)
    assert near.shards_near(1) == (0, 1) and near.shards_near(3) == (0, 2)


def opened(world, tmp_path, **options: Any):
    task = TaskConfig(name="shapes", kind="classification", path=str(world / "shapes"), batch_size=2, **options)
    config = DataConfig(tasks=(task,), vocabulary="restricted", cache_dir=str(tmp_path))
    return open_data(config, Pixels(16, 8), seed=3).sources[0]


def test_shots_are_of_each_class_and_read_once(world, tmp_path, monkeypatch):
    def samples(source) -> list[tuple[int, int]]:
        return sorted(source.order.locate(position) for position in range(source.order.total))

    source = opened(world, tmp_path, shots=2)
    labels = collections.Counter(
        label_of(source.shards.read(*place), source.task.context.info) for place in samples(source)
    )
    assert set(labels.values()) == {2} and len(labels) == len(source.task.context.info.classes)
    monkeypatch.setattr("data.stream.part.label_of", lambda sample, info: pytest.fail("labels are read once"))
    assert samples(opened(world, tmp_path, shots=2)) == samples(source)
    assert set(samples(source)) < set(samples(opened(world, tmp_path, shots=3)))
    assert opened(world, tmp_path, fraction=0.01).order.total == len(source.task.context.info.classes)  # one of each
    (tmp_path / "labels").joinpath(next((tmp_path / "labels").iterdir())).write_bytes(b"damaged")
    monkeypatch.undo()
    assert samples(opened(world, tmp_path, shots=2)) == samples(source)


def test_an_epoch_of_a_part_is_as_long_as_the_part(world, tmp_path):
    whole, part = loss_of(opened(world, tmp_path)), loss_of(opened(world, tmp_path, fraction=0.5))
    assert (whole.part, whole.epoch) == (0, whole.remaining)
    assert part.epoch == opened(world, tmp_path, fraction=0.5).order.total < part.remaining == whole.remaining


def failing(monkeypatch, place: int, failure: Exception, cause: Exception | None = None) -> None:
    read = ShardSet.read

    def one_fails(self: ShardSet, shard: int, index: int):
        if (shard, index) == (0, place):
            raise failure from cause
        return read(self, shard, index)

    monkeypatch.setattr(ShardSet, "read", one_fails)


@pytest.mark.parametrize("failure", [BadShard("away for now"), BadSample("no class")])
def test_labels_are_kept_but_for_shards_that_failed(world, tmp_path, monkeypatch, failure):
    source = opened(world, tmp_path)
    info, shards = source.task.context.info, source.shards
    failing(monkeypatch, 2, failure)
    assert labels_of(info, shards)[2] == -1
    monkeypatch.undo()
    read, asked = ShardSet.read, []
    monkeypatch.setattr(ShardSet, "read", lambda self, *at: asked.append(at) or read(self, *at))
    labels = labels_of(info, shards)
    assert labels.min() == 0 and asked == [(0, 2)]
    assert np.array_equal(labels_of(info, shards), labels) and len(asked) == 1


@pytest.mark.parametrize(
    ("failure", "cause", "code"),
    [
        (BadSample("train-000000.tar sample 2: Input/output error"), OSError(5, "Input/output error"), 2),
        (BadShard("away for now", may_pass=True), TransientError("away for now"), 1),
    ],
)
def test_a_class_that_is_not_known_for_now_stops_the_start(world, tmp_path, monkeypatch, failure, cause, code):
    """Another rank, or the next start, would draw another part."""
    failing(monkeypatch, 2, failure, cause)
    said = f"task shapes: shots and fraction draw by class, and a sample cannot be read to tell its class: {failure.reason}; mend"
    with pytest.raises(DatasetError, match=said) as caught:
        opened(world, tmp_path, shots=2)
    assert is_told_here(caught.value, False) and exit_code(caught.value) == code
    assert opened(world, tmp_path).order.total > 0  # without a choice nothing is asked


def test_a_part_is_known_by_its_samples(world, tmp_path, monkeypatch):
    """A damaged sample is left out everywhere; where a part has other samples, ranks and checkpoints notice."""

    def digests(**options: Any) -> dict[str, str]:
        task = TaskConfig(name="shapes", kind="classification", path=str(world / "shapes"), batch_size=2, **options)
        config = DataConfig(tasks=(task,), vocabulary="restricted", cache_dir=str(tmp_path / str(len(options))))
        return open_data(config, Pixels(16, 8), seed=3).digests

    assert digests().keys() == {"shapes"}
    whole = digests(fraction=0.99)
    assert whole["shapes"] == digests()["shapes"] and whole.keys() == {"shapes", "shapes, its part"}
    assert digests(fraction=0.99) == whole
    failing(monkeypatch, 2, BadSample("no class"))
    assert digests(fraction=0.99, batch_tokens=0) != whole


def test_a_part_of_samples_without_a_class_is_refused(tmp_path):
    info = DatasetInfo(kind="text_class", classes=("a", "b"), token_ids=(320, 321, 49407), splits={})
    write_info(tmp_path, info)
    write_shards(tmp_path, "train", iter([{"__key__": "1", "txt": "a", "cls": "b"}]))
    task = TaskConfig(name="t", kind="text_classification", path=str(tmp_path), fraction=0.5)
    with pytest.raises(DatasetError, match=r"task t: shots and fraction draw by class, and no sample of .* has one"):
        open_data(DataConfig(tasks=(task,), vocabulary="restricted"), Pixels(16, 8), 0)


def test_labels_of_remote_sets_are_told_apart_by_their_places(tmp_path):
    """The same names, sizes and classes; what lies there may differ."""
    listed = ShardList(("a.tar",), np.array([2]), np.array([1024]), {})
    info = DatasetInfo(kind="text_class", classes=("a", "b"), token_ids=(49407,), splits={})
    cache = Cache(tmp_path, 1 << 20)
    kept = {_kept(info, ShardSet(listed, f"https://host/{folder}", (), cache)) for folder in ("v1", "v2")}
    assert len(kept) == 2 and None not in kept


def test_labels_of_shards_that_were_written_anew(tmp_path):
    """The same names and bytes, other labels."""
    (tmp_path / "set").mkdir()
    info = DatasetInfo(kind="text_class", classes=("a", "b"), token_ids=(320, 321, 49407), splits={})
    write_info(tmp_path / "set", info)
    task = TaskConfig(name="t", kind="text_classification", path=str(tmp_path / "set"))
    config = DataConfig(tasks=(task,), vocabulary="restricted", cache_dir=str(tmp_path / "cache"))
    for labels in ([0, 1, 1], [1, 0, 1]):
        for path in (tmp_path / "set").glob("train*"):
            path.unlink()
        samples = [{"__key__": f"{n}", "txt": "a", "cls": label} for n, label in enumerate(labels)]
        write_shards(tmp_path / "set", "train", iter(samples))
        source = open_data(config, Pixels(16, 8), 0).sources[0]
        for _ in range(2):
            assert labels_of(source.task.context.info, source.shards).tolist() == labels
    assert len(list((tmp_path / "cache" / "labels").iterdir())) == 2


def test_of_captions_a_share_of_all_is_drawn(world, tmp_path):
    task = TaskConfig(name="r", kind="retrieval", path=str(world / "pairs"), batch_size=2, fraction=0.25)
    config = DataConfig(tasks=(task,), vocabulary="restricted", cache_dir=str(tmp_path))
    assert open_data(config, Pixels(16, 8), seed=3).sources[0].order.total == 9  # int(0.25 * 32) + 1
    with pytest.raises(ValueError, match="which retrieval does not have: use fraction"):
        check_tasks(dataclasses.replace(config, tasks=(dataclasses.replace(task, fraction=1.0, shots=2),)))


@pytest.mark.parametrize(
    "options", [{"shots": -1}, {"fraction": 0.0}, {"fraction": 1.5}, {"shots": 1, "fraction": 0.5}]
)
def test_parts_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="task t: shots="):
        TaskConfig(name="t", kind="classification", path="x", **options)
