"""Samples are read some at a time and then decoded; what comes of it does not depend on how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.shards import BadSample, BadShard, ShardSet
from data.stream import micro_batch
from data.stream.faults import TooManyFaultsError
from data.stream.micro_batch import MicroBatch, build_micro_batch
from data.stream.schedule import Assignment
from data.stream.source import Source
from data.stream.training import schedule_of
from tests.helpers.streams import SEED, numbered, opened, write_numbered

BATCH = 9


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """16 samples in two shards: the fourth is no image, the header of the twelfth is damaged."""
    write_numbered(tmp_path, (8, 8))
    for shard, sample, distance in ((0, 3, 512), (1, 3, 0)):
        path = tmp_path / f"train-{shard:06d}.tar"
        content = bytearray(path.read_bytes())
        start = int(opened(numbered(str(tmp_path))).shards.ranges(shard)[sample, 0]) + distance
        content[start : start + 8] = b"\0" * 8
        path.write_bytes(content)
    return opened(numbered(str(tmp_path), batch_size=BATCH))


def built(source: Source) -> list[MicroBatch]:
    schedule = schedule_of(numbered("", batch_size=BATCH), 1, SEED, [source])
    return [build_micro_batch(source, Assignment(step, 0, 0, step * BATCH), schedule) for step in range(4)]


def contents(micros: list[MicroBatch]) -> list[Any]:
    return [
        (m.batch.labels_Q.tolist(), m.batch.inputs.segments[0].values.tolist(), m.faults, m.inputs, m.candidates)
        for m in micros
    ]


def test_what_it_holds_is_counted_where_it_is_made(source):
    for micro in built(source):
        inputs, names = micro.batch.inputs, micro.batch.candidates
        assert (micro.inputs, micro.candidates) == (inputs.counts, names.counts)
        patches, words = (int(s.segments[0].valid_BL.sum()) for s in (inputs, names))
        assert micro.inputs.tokens_M == (0, patches, 0) and micro.candidates.tokens_M == (words, 0, 0)
        assert micro.inputs.tokens == patches + inputs.num_rows and micro.candidates.tokens == words + names.num_rows


@pytest.mark.parametrize("limit", [0, 1, 700, 2000])
def test_how_much_is_read_ahead_changes_nothing(source, monkeypatch, limit):
    expected = contents(built(source))
    monkeypatch.setattr(micro_batch, "READ_AHEAD_BYTES", limit)
    assert contents(built(source)) == expected
    faults = {(fault.shard, fault.sample, fault.reason.split(":")[0]) for one in expected for fault in one[2]}
    assert {(shard, sample) for shard, sample, _ in faults} == {("train-000000.tar", 3), ("train-000001.tar", 3)}


def test_no_more_is_read_ahead_than_the_limit_and_one_sample(source, monkeypatch):
    """By the order of what happens: bytes read and not yet decoded."""
    held, most, runs = 0, 0, []
    read, example = ShardSet.read, type(source.task).example
    size = sum(map(len, source.shards.read(0, 0).values()))
    limit = 3 * size - 1

    def counting_read(self: ShardSet, shard: int, index: int) -> Any:
        nonlocal held, most
        sample = read(self, shard, index)
        runs.append("read")
        held += sum(map(len, sample.values()))
        most = max(most, held)
        return sample

    def counting_example(self: Any, sample: Any, generator: Any) -> Any:
        nonlocal held
        runs.append("example")
        held -= sum(map(len, sample.values()))
        return example(self, sample, generator)

    monkeypatch.setattr(ShardSet, "read", counting_read)
    monkeypatch.setattr(type(source.task), "example", counting_example)
    monkeypatch.setattr(micro_batch, "READ_AHEAD_BYTES", limit)
    built(source)
    assert limit <= most < limit + 2 * size
    assert runs[:4] == ["read", "read", "read", "example"]


def test_a_bad_sample_does_not_hold_what_was_read_of_it(source):
    """An exception's frames would: its own and those of its causes."""
    whole = [micro_batch._read(source, *source.order.locate(position)).content for position in range(16)]
    bad = [content for content in whole if isinstance(content, BadSample)]
    assert len(bad) == 1
    assert bad[0].__traceback__ is bad[0].__cause__ is bad[0].__context__ is None


def places_in(source: Source, start: int) -> list[tuple[int, int]]:
    """Where the examples of a micro-batch come from."""
    seen: list[tuple[int, int]] = []
    example, read = type(source.task).example, micro_batch._read

    def reading(source: Source, shard: int, index: int) -> Any:
        found = read(source, shard, index)
        if isinstance(found.content, dict):
            found.content["__place__"] = (shard, index)  # type: ignore[assignment]
        return found

    def noting(self: Any, sample: Any, generator: Any) -> Any:
        made = example(self, sample, generator)
        seen.append(sample["__place__"])
        return made

    schedule = schedule_of(numbered("", batch_size=BATCH), 1, SEED, [source])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_batch, "_read", reading)
        patch.setattr(type(source.task), "example", noting)
        build_micro_batch(source, Assignment(0, 0, 0, start), schedule)
    return seen


@pytest.mark.parametrize("start", [0, 3, 7])
def test_no_sample_comes_twice_into_a_batch_in_place_of_a_bad_one(source, start):
    """Inside one epoch of 16 samples, of which two are bad and none is left over but the good ones."""
    places = places_in(source, start)
    assert len(places) == BATCH and len(set(places)) == BATCH


def test_the_replacement_of_a_sample_follows_from_the_batch_alone(source):
    assert places_in(source, 0) == places_in(source, 0)


@pytest.mark.parametrize(
    ("error", "words"), [(BadShard("gone"), r"\d\.tar: gone$"), (BadSample("bad", 3), r"\d\.tar sample \d: bad$")]
)
def test_where_nothing_can_be_read_the_last_is_named_in_words(source, monkeypatch, error, words):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(ShardSet, "read", fail)
    with pytest.raises(
        TooManyFaultsError, match=rf"^task numbers: 100 bad samples in a row; the last, train-00000{words}"
    ):
        built(source)
