"""The evaluation pass: each sample once over all ranks and workers, whatever the sizes."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo, SplitInfo, write_info, write_shard, write_shard_list
from data.stream.evaluation import EvaluationBatch, _Pass, evaluation_pass, places_of, spread
from data.stream.part import PartOrder
from data.stream.share import Share
from data.stream.source import Source
from data.transport import Ahead
from tests.helpers.streams import opened as opened_set
from tests.helpers.streams import tokenizer

WORDS = ["red", "blue", "green", "circle", "square", "star", "left", "right", "up", "down"]


def text_source(folder, sizes, **options) -> Source:
    """A text data set with shards of these sizes; sample i of all has its number, spelled by words, as text."""
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        samples = [{"__key__": f"{i:03d}", "txt": spelled(i)} for i in itertools.islice(numbers, size)]
        write_shard(folder / f"train-{shard:06d}.tar", samples)
    write_shard_list(folder, "train")
    tokens = sorted({49407, *itertools.chain.from_iterable(map(tokenizer().encode, WORDS))})
    info = DatasetInfo(
        kind="text", classes=(), token_ids=tuple(tokens), splits={"train": SplitInfo(sum(sizes), len(sizes))}
    )
    write_info(folder, info)
    return opened(folder, **options)


def opened(folder, **options) -> Source:
    task = TaskConfig(name="texts", kind="masked_text", path=str(folder), max_text=16)
    return opened_set(DataConfig(tasks=(task,), vocabulary="restricted", **options))


def spelled(number: int) -> str:
    return " ".join(WORDS[int(digit)] for digit in f"{number:03d}")


def number_of(source: Source, example) -> int:
    tokens = list(example.tokens)
    for place, original in zip(example.masked, example.originals, strict=True):
        tokens[place] = original
    words = source.task.vocabulary.decode(tokens[:-1]).split()
    return int("".join(str(WORDS.index(word)) for word in words))


@pytest.mark.parametrize(
    ("sizes", "ranks", "workers", "limit"),
    [((10, 7, 3), 4, 3, None), ((20,), 4, 1, None), ((10, 7, 3), 2, 5, None), ((1, 0, 1), 4, 1, None), ((10, 7, 3), 3, 2, 13)],
)  # fmt: skip
def test_every_sample_once(tmp_path, sizes, ranks, workers, limit):
    source = text_source(tmp_path, sizes)
    total = min(source.order.total, limit or 99)
    check(
        [in_turn(_Pass(source, 3, np.arange(total), Share(rank, ranks)), workers) for rank in range(ranks)],
        source,
        total,
    )


def in_turn(dataset: _Pass, workers: int) -> list[EvaluationBatch]:
    """As torch's loader asks its workers, without starting them."""
    parts = [list(dataset.part(worker, workers)) for worker in range(workers)]
    return [batch for group in itertools.zip_longest(*parts) for batch in group if batch is not None]


def check(parts: list[list[EvaluationBatch]], source: Source, total: int) -> None:
    assert len({len(part) for part in parts}) == 1, "ranks would wait for one another"
    batches = [batch for group in zip(*parts, strict=True) for batch in group]
    assert all(len(batch.examples) == len(batch.valid) == 3 and not batch.faults for batch in batches)
    found = [
        number_of(source, example)
        for batch in batches
        for example, valid in zip(batch.examples, batch.valid, strict=True)
        if valid
    ]
    assert found == list(range(total))


@pytest.mark.slow
def test_ten_seven_three_on_four_ranks_with_three_workers_each(tmp_path):
    """With real worker processes."""
    source = text_source(tmp_path, (10, 7, 3))
    check([list(evaluation_pass(source, 3, None, Share(rank, 4), workers=3)) for rank in range(4)], source, 20)


def test_batches_are_those_of_one_rank(tmp_path):
    source = text_source(tmp_path, (10, 7, 3))
    alone = [[number_of(source, e) for e in batch.examples] for batch in evaluation_pass(source, 8)]
    assert alone == [list(range(8)), list(range(8, 16)), [16, 17, 18, 19, 0, 1, 2, 3]]
    second = [[number_of(source, e) for e in batch.examples] for batch in evaluation_pass(source, 8, share=Share(1, 2))]
    assert second[0] == alone[1] and len(second) == 2
    assert [batch.valid for batch in evaluation_pass(source, 8, share=Share(1, 2))] == [(True,) * 8, (False,) * 8]


def test_a_bad_sample_is_reported_once_and_left_out(tmp_path):
    source = text_source(tmp_path, (4, 4))
    tar = tmp_path / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[1024 + 512 : 1024 + 520] = b"\xff" * 8  # the text of its second sample
    tar.write_bytes(content)
    batches = [b for rank in range(3) for b in evaluation_pass(source, 3, share=Share(rank, 3))]
    (fault,) = [fault for batch in batches for fault in batch.faults]
    assert (fault.shard, fault.sample, fault.offset) == ("train-000001.tar", 1, 1024) and "UTF-8" in fault.reason
    counted = collections.Counter(
        number_of(source, e) for b in batches for e, valid in zip(b.examples, b.valid, strict=True) if valid
    )
    assert counted == dict.fromkeys({0, 1, 2, 3, 4, 6, 7}, 1)


def test_a_batch_is_not_larger_than_the_data(tmp_path):
    source = text_source(tmp_path, (3,))
    (batch,) = evaluation_pass(source, 64)
    assert batch.valid == (True,) * 3
    (batch,) = evaluation_pass(source, 64, limit=2)
    assert len(batch.examples) == 2


def test_a_limit_is_spread_over_the_split(tmp_path):
    """Sorted by class, and with classes that take turns: of 1,000 samples 100 have all of ten classes, some ten of each."""
    places = spread(1000, 100)
    assert places.tolist() == spread(1000, 100).tolist() and (places // 10).tolist() == list(range(100))
    assert np.bincount(places // 100).tolist() == [10] * 10 and min(np.bincount(places % 10)) > 2
    assert spread(3, 7).tolist() == spread(3, None).tolist() == [0, 1, 2]
    source = text_source(tmp_path, (10, 7, 3))
    of_two = [b.places for rank in range(2) for b in evaluation_pass(source, 2, 8, Share(rank, 2))]
    assert sorted(place for batch in of_two for place in batch) == spread(20, 8).tolist()


def test_a_shard_without_wanted_samples_is_not_fetched(tmp_path, monkeypatch):
    source, wanted = text_source(tmp_path, (10, 7, 3, 5)), list[int]()
    monkeypatch.setattr(type(source.shards), "is_remote", property(lambda self: True))
    monkeypatch.setattr(Ahead, "want", lambda self, calls: wanted.extend(call.args[0] for call in calls))
    list(evaluation_pass(source, 2, places=np.array([1, 2, 17, 19, 20])))
    assert wanted == [2, 3, 3]


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_at_some_places_alone(tmp_path, ranks):
    source, places = text_source(tmp_path, (10, 7, 3)), np.array([1, 4, 5, 17])
    passed = [list(evaluation_pass(source, 3, share=Share(rank, ranks), places=places)) for rank in range(ranks)]
    batches = [batch for of_one in zip(*passed, strict=True) for batch in of_one]
    assert [place for b in batches for place, valid in zip(b.places, b.valid, strict=True) if valid] == places.tolist()
    assert all(tuple(number_of(source, e) for e in batch.examples) == batch.places for batch in batches)
    assert list(evaluation_pass(source, 3, share=Share(0, ranks), places=places[:0])) == []


def test_places_are_those_of_an_epoch(tmp_path):
    source = text_source(tmp_path, (10, 7, 3))
    assert places_of(source).tolist() == list(range(20))
    order = PartOrder([10, 7, 3], np.array([1, 4, 10, 19]), seed=0, window=2)
    assert places_of(dataclasses.replace(source, order=order)).tolist() == [1, 4, 10, 19]
