"""The training stream and the evaluation pass, on real shards."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetError, DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.evaluation import evaluation_pass
from data.stream.faults import loss_of
from data.stream.share import Share
from data.stream.source import open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels
from data.text.tokenizer import Tokenizer

NAMES = ("red", "blue")
NUM = 12


def image(index: int) -> bytes:
    return encode_png(np.full((8, 8, 3), index * 20, dtype=np.uint8))


def write(folder, kind, samples, classes=()):
    texts = [*classes, *(s.get("txt", "") for s in samples)]
    tokens = sorted({49407, *itertools.chain.from_iterable(map(Tokenizer.load().encode, texts))})
    shards = write_shards(folder, "train", samples, samples_per_shard=5)
    info = DatasetInfo(
        kind=kind, classes=classes, token_ids=tuple(tokens), splits={"train": SplitInfo(len(samples), len(shards))}
    )
    write_info(folder, info)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write(
        root / "images",
        "image_class",
        [{"__key__": f"{i:03d}", "png": image(i), "cls": i % 2} for i in range(NUM)],
        NAMES,
    )
    broken = [{"__key__": f"{i:03d}", "png": b"no image" if i == 3 else image(i), "cls": i % 2} for i in range(NUM)]
    write(root / "broken", "image_class", broken, NAMES)
    write(root / "texts", "text", [{"__key__": f"{i:03d}", "txt": f"red {'blue ' * i}red"} for i in range(NUM)])
    return root


def config(folders, *, images="images", **options) -> DataConfig:
    tasks = (
        TaskConfig(
            name="images", kind="classification", path=str(folders / images), batch_size=3, max_text=4, flip=True
        ),
        TaskConfig(name="texts", kind="masked_text", path=str(folders / "texts"), batch_size=2, max_text=16),
    )
    return DataConfig(tasks=tasks, vocabulary="restricted", shuffle_window=8, **options)


def stream(data: DataConfig, index=0, count=1, start=0, consumed=(0, 0), workers=0, micro_batches=2):
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    return training_stream(sources, schedule_of(data, micro_batches, 3), Share(index, count), start, consumed, workers)


def facts(micro):
    segment = micro.batch.inputs.segments[0]
    return micro.assignment, segment.values.double().sum().item(), micro.batch.labels_Q.tolist()


def take(iterator, number):
    return [facts(micro) for micro in itertools.islice(iterator, number)]


def test_ranks_and_workers_change_nothing(folders):
    data = config(folders)
    alone = take(stream(data), 12)
    assert take(stream(data, workers=2), 12) == alone
    ranks = [take(stream(data, index, 2), 6) for index in range(2)]
    assert [fact for pair in zip(*ranks, strict=True) for fact in pair] == alone


def test_workers_do_not_send_what_all_batches_share(folders):
    """Class names and words: the very objects that the trainer's tasks hold come with every batch."""
    data = config(folders)
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    micros = training_stream(sources, schedule_of(data, 2, 3), Share(), 0, (0, 0), 1)
    shared = {source.name: source.task.kept_candidates[0] for source in sources}
    for micro in itertools.islice(micros, 8):
        assert micro.batch.candidates is shared[micro.batch.task]


def test_resume_goes_on_exactly(folders):
    data = config(folders)
    consumed = (0, 0)
    for step in range(3):
        _, consumed = schedule_of(data, 2, 3).step(step, consumed)
    assert take(stream(data, start=3, consumed=consumed), 6) == take(stream(data), 12)[6:]


def test_a_bad_sample_is_reported_and_replaced(folders):
    micros = list(itertools.islice(stream(config(folders, images="broken")), 30))
    faults = [fault for micro in micros for fault in micro.faults]
    assert faults and {fault.task for fault in faults} == {"images"}
    assert {(fault.shard, fault.sample, fault.offset) for fault in faults} == {("train-000000.tar", 3, 3 * 2048)}
    assert "image of 8 bytes" in faults[0].reason
    assert all(micro.batch.labels_Q.shape[0] == 3 for micro in micros if micro.batch.task == "images")


def test_batches_are_what_the_tasks_say(folders):
    micros = list(itertools.islice(stream(config(folders)), 10))
    images = next(m.batch for m in micros if m.batch.task == "images")
    assert images.inputs.segments[0].values.shape == (3, 4, 48)
    assert images.candidates.num_rows == 2 and images.temperature == "image"
    texts = next(m.batch for m in micros if m.batch.task == "texts")
    assert texts.temperature == "text" and (texts.read_Q2[:, 1] >= 1).all()
    assert texts.candidates.num_rows == 3  # red, blue, end-of-text


def test_evaluation_takes_every_sample_once_and_without_chance(folders):
    data = config(folders)
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    first, second = ([e for batch in evaluation_pass(sources[1], 4) for e in batch.examples] for _ in range(2))
    assert len(first) == NUM and first == second
    assert [e.label for b in evaluation_pass(sources[0], 4) for e in b.examples] == [i % 2 for i in range(NUM)]
    assert sum(sum(b.valid) for b in evaluation_pass(sources[0], 5, limit=7)) == 7


def copied(folder, to):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())


def test_a_shard_cut_off_since_it_was_listed_is_reported_when_it_is_met(folders, tmp_path):
    copied(folders / "images", tmp_path)
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])  # two of its five samples are left
    data = DataConfig(tasks=(TaskConfig(name="cut", kind="classification", path=str(tmp_path), batch_size=3),))
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    assert loss_of(sources[0]).faults == () and len(sources[0].shards) == NUM
    micros = list(itertools.islice(training_stream(sources, schedule_of(data, 1, 3), Share(), 0, (0,), 0), 4))
    faults = [fault for micro in micros for fault in micro.faults]
    assert {(fault.shard, fault.sample) for fault in faults} == {("train-000000.tar", None)}
    assert "2 samples, its list says 5" in faults[0].reason and "cut off" in faults[0].reason
    assert all(micro.batch.labels_Q.shape == (3,) for micro in micros)


def test_a_shard_found_damaged_when_it_is_counted_is_reported_at_the_start(folders, tmp_path):
    copied(folders / "images", tmp_path)
    (tmp_path / "train.shards.json").unlink()
    (tmp_path / "train-000000.tar").write_bytes(b"<!DOCTYPE html><title>404</title>")
    data = DataConfig(tasks=(TaskConfig(name="cut", kind="classification", path=str(tmp_path), batch_size=2),))
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    (fault,) = loss_of(sources[0]).faults
    assert (fault.shard, fault.sample) == ("train-000000.tar", None) and "HTML" in fault.reason
    assert len(sources[0].shards) == NUM - 5


def test_wrong_kind_and_wrong_place_are_errors(folders):
    for change, message in (
        ({"kind": "retrieval"}, "reads data sets of kind"),
        ({"path": "nowhere"}, "nowhere"),
        ({"split": "x"}, "train"),
    ):
        task = TaskConfig(**({"name": "t", "kind": "classification", "path": str(folders / "images")} | change))
        data = DataConfig(tasks=(task,))
        with pytest.raises(DatasetError, match=message):
            open_data(data, Pixels(8, 4), seed=0)


def test_sources_travel_to_worker_processes(folders):
    data = config(folders)
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    again = pickle.loads(pickle.dumps(sources))
    assert again[0].order.locate(5) == sources[0].order.locate(5)
    assert torch.equal(again[0].task.candidates.segments[0].values, sources[0].task.candidates.segments[0].values)
