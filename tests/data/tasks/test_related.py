"""A trained task's options for questions of another kind."""

from __future__ import annotations

import pytest

from data.config import MixConfig, TaskConfig
from data.shards import DatasetInfo
from data.tasks import TASKS, WRITTEN, kind_of, make_task
from data.tasks.base import Pixels, TaskContext
from data.tasks.related import as_kind, trained_temperature
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary

ALL = [(kind, "rank") for kind in TASKS] + [(kind, "generate") for kind in WRITTEN]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.closed(Tokenizer.load(), sorted({49407, *Tokenizer.load().encode("cat dog")}))


@pytest.mark.parametrize(("kind", "answer"), ALL)
def test_scales_are_those_that_tasks_choose(vocabulary, kind, answer):
    config = TaskConfig(name="t", kind=kind, path="x", answer=answer)
    for about in kind_of(config).reads:
        classes = ("cat", "dog") if about.endswith(("_class", "_question")) else ()
        info = DatasetInfo(kind=about, classes=classes, token_ids=(), splits={})
        made = make_task(TaskContext(config, info, vocabulary, Pixels(16, 8)))
        assert trained_temperature(config, about.partition("_")[0]) == made.temperature
    assert trained_temperature(TaskConfig(name="t", kind=kind, path="x", temperature="own"), "image") == "own"


def test_another_kind_has_no_options_of_the_first_and_its_scale():
    pairs = TaskConfig(name="p", kind="retrieval", path="x", loss="sigmoid", candidates="global", max_text=9)
    as_names = as_kind(pairs, "classification", "image")
    assert as_names == TaskConfig(name="p", kind="classification", path="x", max_text=9, temperature="retrieval")
    clips = TaskConfig(name="c", kind="classification", path="x", views=(3, 4), num_frames=8, mix=MixConfig(mixup=1.0))
    assert as_kind(clips, "retrieval", "video") == TaskConfig(
        name="c", kind="retrieval", path="x", num_frames=8, temperature="video"
    )
    assert as_kind(clips, "retrieval", "").temperature == ""  # nobody knows


def test_the_same_kind_stays_without_what_is_of_training():
    clips = TaskConfig(
        name="c", kind="classification", path="x", views=(3, 4), label_smoothing=0.1, batch_tokens=99, batch_size=7
    )
    assert as_kind(clips, "classification", "video") == TaskConfig(
        name="c", kind="classification", path="x", views=(3, 4)
    )
