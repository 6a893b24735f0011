"""How often tasks come, how large their micro-batches are, and that all captions of an image are used."""

from __future__ import annotations

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data.config import DataConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetError, DatasetInfo, SplitInfo, write_info, write_shards
from data.stream.schedule import shares
from data.stream.source import open_data
from data.stream.training import schedule_of
from data.tasks import kind_of
from data.tasks.base import Pixels
from run.config_file import load_config
from run.errors import ConfigError
from tests.helpers.runs import ROOT
from tests.helpers.streams import SEED, numbered, opened, streamed, tokenizer, write_numbered


def test_shares_by_hand():
    assert shares((3.0, 1.0), (), "weights", 1.0) == pytest.approx((0.75, 0.25))
    assert shares((1.0, 1.0), (900, 100), "sizes", 1.0) == pytest.approx((0.9, 0.1))
    assert shares((1.0, 1.0), (900, 100), "sizes", 2.0) == pytest.approx((0.75, 0.25))  # 30 and 10
    assert shares((1.0, 3.0), (900, 100), "sizes", 2.0) == pytest.approx((0.5, 0.5))
    assert shares((1.0, 1.0), (10**9, 1), "sizes", 1e9) == pytest.approx((0.5, 0.5))


@hypothesis.given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    size=st.integers(1, 10**12),
    temperature=st.floats(0.1, 100),
)
def test_equal_sizes_leave_the_weights(weights, size, temperature):
    by_sizes = shares(weights, [size] * len(weights), "sizes", temperature)
    assert by_sizes == pytest.approx(shares(weights, (), "weights", 1.0), rel=1e-6) and sum(by_sizes) == pytest.approx(
        1
    )


def test_the_schedule_follows_the_sizes(tmp_path):
    for name, size in (("large", 36), ("small", 4)):
        (tmp_path / name).mkdir()
        write_numbered(tmp_path / name, (size,))
    tasks = tuple(
        TaskConfig(name=name, kind="classification", path=str(tmp_path / name), max_text=4)
        for name in ("large", "small")
    )
    for temperature, share in ((1.0, 0.9), (2.0, 0.75)):
        data = DataConfig(tasks=tasks, vocabulary="restricted", mixture="sizes", mixture_temperature=temperature)
        sources = open_data(data, Pixels(8, 4), SEED).sources
        schedule = schedule_of(data, 2000, SEED, sources)
        assert collections.Counter(schedule.tasks_of(0))[0] / 2000 == pytest.approx(share, abs=0.03)
        with pytest.raises(ValueError, match="opened sources"):
            schedule_of(data, 2, SEED)


TASK = {"name": "t", "path": "x", "max_text": 10, "num_frames": 3}


@pytest.mark.parametrize(
    ("kind", "video", "tokens"),
    # 4 patches a frame, one <SPE> a sequence; captions stand twice (words and queries), retrieval brings its text as a candidate.
    [
        ("classification", False, 1 + 4),
        ("classification", True, 1 + 12),
        ("masked_text", False, 1 + 10),
        ("text_classification", False, 1 + 10),
        ("captioning", False, 1 + 4 + 20),
        ("captioning", True, 1 + 12 + 20),
        ("retrieval", False, 1 + 4 + 1 + 10),
    ],
)
def test_token_budgets_by_hand(kind, video, tokens):
    task = TaskConfig(kind=kind, **TASK)
    assert kind_of(task).most_tokens(task, 4, video) == tokens
    assert kind_of(task).with_batch_size(task, 4, video) == task  # no budget, nothing changes
    budget = TaskConfig(kind=kind, batch_tokens=7 * tokens + tokens - 1, **TASK)
    assert kind_of(task).with_batch_size(budget, 4, video).batch_size == 7
    least = 2 * tokens if kind == "retrieval" else tokens
    with pytest.raises(DatasetError, match=f"task t: batch_tokens={least - 1} is too little.*use at least {least}"):
        kind_of(task).with_batch_size(TaskConfig(kind=kind, batch_tokens=least - 1, **TASK), 4, video)


def test_no_micro_batch_exceeds_its_budget(tmp_path):
    write_numbered(tmp_path, (40,))
    data = numbered(str(tmp_path))
    (task,) = data.tasks
    data = DataConfig(
        tasks=(TaskConfig(name="n", kind="classification", path=task.path, max_text=4, batch_tokens=33),),
        vocabulary="restricted",
    )
    source = opened(data)
    assert source.task.config.batch_size == 6  # five tokens each
    for micro in streamed(data, 5, source=source):
        assert micro.num_samples == 6 and micro.batch.inputs.num_tokens == 30


def test_all_captions_of_an_image_are_used_over_epochs(tmp_path):
    captions = {str(i): [f"{'red ' * n}{'blue ' * i}".strip() for n in range(1, 5)] for i in range(3)}
    samples = [
        {"__key__": key, "png": encode_png(np.zeros((8, 8, 3), np.uint8)), "json": {"captions": texts}}
        for key, texts in captions.items()
    ]
    write_shards(tmp_path, "train", samples)
    tokens = sorted({49407, *(t for texts in captions.values() for text in texts for t in tokenizer().encode(text))})
    info = DatasetInfo(kind="image_caption", classes=(), token_ids=tuple(tokens), splits={"train": SplitInfo(3, 1)})
    write_info(tmp_path, info)
    task = TaskConfig(name="c", kind="captioning", path=str(tmp_path), batch_size=3, max_text=12)
    data = DataConfig(tasks=(task,), vocabulary="restricted")
    source = opened(data)
    seen = collections.Counter()
    for micro in streamed(data, 60, source=source):  # an epoch each
        words = micro.batch.inputs.segments[1]
        for row, valid in zip(words.values, words.valid_BL, strict=True):
            seen[source.task.vocabulary.decode([t for t in row[valid].tolist()][:-1]).strip()] += 1
    assert set(seen) == {text for texts in captions.values() for text in texts}
    assert min(seen.values()) >= 5  # each of the 12 is expected 15 times


def test_options_are_checked():
    for key, message in (
        ("data.mixture_temperature=0", "must be positive"),
        ("data.cache_gib=0", "must be positive"),
        ("data.mixture=temperature", "data.mixture"),
        ("data.tasks.shapes.batch_tokens=-1", "batch_tokens >= 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(ROOT / "configs" / "demo.yaml", [key])
