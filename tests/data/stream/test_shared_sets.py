"""Which candidate sets come with the micro-batches of ranks with different tasks."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from data.batch import Scope
from data.config import DataConfig, TaskConfig
from data.shards import DatasetInfo, read_info, write_info
from data.stream.share import Share
from data.stream.source import open_data
from data.stream.training import schedule_of, training_stream
from data.tasks.base import Pixels
from tests.data.stream.test_training import folders, write  # noqa: F401


@pytest.fixture
def data(folders, tmp_path) -> DataConfig:  # noqa: F811
    """Names; the same names once more; words; names of which one is drawn; names that are not shared."""
    samples = [{"__key__": f"{i:03d}", "txt": "red blue"} for i in range(8)]
    write(tmp_path, "text_class", [sample | {"cls": 0} for sample in samples], ("dog", "cat", "owl"))
    info: DatasetInfo = read_info(folders / "images")
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for path in (folders / "images").iterdir():
        (drawn / path.name).write_bytes(path.read_bytes())
    names = tuple((f"{name} dog", f"{name} cat", f"{name} owl") for name in info.classes)
    write_info(drawn, dataclasses.replace(info, synonyms=names))
    pictures = {"kind": "classification", "path": str(folders / "images"), "max_text": 4, "batch_size": 2}
    tasks = (
        TaskConfig(name="images", candidates="sharded", **pictures),
        TaskConfig(name="again", candidates="sharded", **pictures),
        TaskConfig(name="texts", kind="masked_text", path=str(folders / "texts"), candidates="sharded", max_text=16),
        TaskConfig(name="drawn", candidates="sharded", **(pictures | {"path": str(drawn)})),
        TaskConfig(name="alone", **pictures),
    )
    return DataConfig(tasks=tasks, vocabulary="full", shuffle_window=8)


def streams(data: DataConfig, ranks: int, steps: int, workers: int = 0, task_ids=()):
    """Of each rank; four micro-batches a step."""
    made = []
    for rank in range(ranks):
        sources = open_data(data, Pixels(8, 4), seed=3).sources
        schedule, consumed = schedule_of(data, 4, 3), (0,) * len(data.tasks)
        stream = training_stream(sources, schedule, Share(rank, ranks), 0, consumed, workers, task_ids=task_ids)
        made.append(list(itertools.islice(stream, steps * 4 // ranks)))
    return made


def content(of_all) -> tuple:
    return of_all.number, of_all.task, of_all.candidates.segments[0].values.tolist()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_all_ranks_get_the_union_and_each_finds_its_own(data, workers):
    seen: set[tuple[int, ...]] = set()
    for beside in zip(*streams(data, 4, 12, workers), strict=True):
        (sets,) = {str([content(of_all) for of_all in micro.batch.shared]) for micro in beside}
        assert sets
        numbers = tuple(of_all.number for of_all in beside[0].batch.shared)
        seen.add(numbers)
        # Both tasks on the same names ask for one set.
        asked = {{"again": 0}.get(m.batch.task, m.assignment.task) for m in beside if m.batch.task != "alone"}
        assert numbers == tuple(sorted(asked))
        for micro in beside:
            batch = micro.batch
            assert len(micro.shared) == len(batch.shared)
            if batch.task == "alone":
                assert batch.scope == Scope.LOCAL and batch.candidates.num_rows == 2
                continue
            assert batch.scope == Scope.SHARDED
            own = batch.shared[batch.own]
            assert own.number == {"again": 0}.get(batch.task, micro.assignment.task)
            assert torch.equal(batch.candidates.segments[0].values, own.candidates.segments[0].values)
    assert len(seen) > 3


def test_a_router_that_tells_tasks_apart_has_a_set_for_each(data):
    found = {
        (s.number, s.task) for stream in streams(data, 4, 12, task_ids=range(5)) for m in stream for s in m.batch.shared
    }
    assert found == {(0, "images"), (1, "again"), (2, "texts"), (3, "drawn")}


def test_drawn_names_are_those_of_the_step_on_any_number_of_ranks(data):
    def drawn(ranks: int) -> dict[int, set[str]]:
        names: dict[int, set[str]] = {}
        for micro in itertools.chain(*streams(data, ranks, 12)):
            for of_all in micro.batch.shared:
                if of_all.number == 3:
                    names.setdefault(micro.assignment.step, set()).add(str(content(of_all)))
        return names

    alone, four = drawn(1), drawn(4)
    assert alone == four and all(len(of_step) == 1 for of_step in alone.values())
    assert len(set().union(*alone.values())) > 1


def test_workers_do_not_send_sets_that_stay_the_same(data):
    sources = open_data(data, Pixels(8, 4), seed=3).sources
    words = sources[2].task.kept_candidates[0]
    stream = training_stream(sources, schedule_of(data, 4, 3), Share(), 0, (0,) * 5, 1)
    of_words = [m for m in itertools.islice(stream, 24) if m.batch.task == "texts"]
    assert of_words and all(micro.batch.candidates is words for micro in of_words)
    assert len({id(micro.batch.shared[0]) for micro in of_words}) == 1
    assert all(micro.batch.shared[0].candidates is words for micro in of_words)
