"""Which words are masked, and what stands in their places."""

from __future__ import annotations

import numpy as np
import pytest

from data.config import TaskConfig
from data.shards import BadSample, DatasetInfo
from data.tasks import make_task
from data.tasks.base import Pixels, TaskContext
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary

TEXT = " ".join(
    ["red", "blue", "circle", "square", "of", "left", "a", "the", "on", "sky"] * 10
)  # 100 words of one token


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = Tokenizer.load()
    return Vocabulary.restricted(tokenizer, tokenizer.encode(f"{TEXT} extraordinarily"))


def task(vocabulary, **options):
    config = TaskConfig(name="t", kind="masked_text", path="p", max_text=128, **options)
    info = DatasetInfo(kind="text", classes=(), token_ids=(), splits={})
    return make_task(TaskContext(config, info, vocabulary, Pixels(8, 4)))


def examples(made, number: int, text: str = TEXT):
    return [made.example({"txt": text}, np.random.default_rng(seed)) for seed in range(number)]


@pytest.mark.parametrize(("rate", "count"), [(0.15, 15), (0.1, 10), (0.304, 30), (0.001, 1)])
def test_the_rate_is_the_share_of_words(vocabulary, rate, count):
    assert all(len(example.masked) == count for example in examples(task(vocabulary, mask_rate=rate), 5))


def test_places_are_drawn_over_the_whole_text(vocabulary):
    masked = [position for example in examples(task(vocabulary), 200) for position in example.masked]
    assert set(masked) == set(range(100))  # 3,000 draws of 100 places; the end of the text is none of them
    counts = np.bincount(masked)
    assert counts.min() > 10 and counts.max() < 55  # 30 each, five standard deviations either way


def test_shares_are_eighty_ten_ten(vocabulary):
    made = task(vocabulary)
    kinds = {"spe": 0, "kept": 0, "random": 0}
    randoms = set()
    for example in examples(made, 400):
        for position, original in zip(example.masked, example.originals, strict=True):
            token = example.tokens[position]
            kind = "spe" if token == vocabulary.spe else "kept" if token == original else "random"
            kinds[kind] += 1
            randoms |= {token} if kind == "random" else set()
    total = sum(kinds.values())
    assert total == 400 * 15
    # Five standard deviations of a binomial are 5 * sqrt(p (1 - p) / 6000): 0.026 and 0.019. One word of the ten and a few
    # that random draws hit is the original itself: it counts as kept.
    words = vocabulary.num_candidates - 1
    assert kinds["spe"] / total == pytest.approx(0.8, abs=0.026)
    assert kinds["random"] / total == pytest.approx(0.1 * (1 - 1 / words), abs=0.019)
    assert kinds["kept"] / total == pytest.approx(0.1 * (1 + 1 / words), abs=0.019)
    assert randoms == set(range(words))  # every word, and neither the end of the text nor <SPE>


@pytest.mark.parametrize(("shares", "expected"), [((1.0, 0.0), "spe"), ((0.0, 0.0), "kept"), ((0.0, 1.0), "random")])
def test_other_shares(vocabulary, shares, expected):
    for example in examples(task(vocabulary, mask_shares=shares), 20):
        found = [example.tokens[position] for position in example.masked]
        if expected == "spe":
            assert set(found) == {vocabulary.spe}
        elif expected == "kept":
            assert found == example.originals
        else:
            assert vocabulary.spe not in found and found != example.originals


def test_evaluation_shows_no_masked_word_and_masks_the_same_ones_each_time(vocabulary):
    made = task(vocabulary, mask_shares=(0.0, 0.0))
    first, again = (made.example({"txt": TEXT}, None) for _ in range(2))
    assert first == again and {first.tokens[position] for position in first.masked} == {vocabulary.spe}
    assert made.example({"txt": f"{TEXT} sky"}, None).masked != first.masked


def test_a_word_of_several_tokens_is_masked_as_a_whole(vocabulary):
    made = task(vocabulary, mask_rate=0.5, mask_shares=(1.0, 0.0))
    pieces = len(vocabulary.encode("extraordinarily", 32)) - 1
    assert pieces > 1
    seen = set()
    for example in examples(made, 30, "extraordinarily red"):
        assert example.masked in ([pieces], list(range(pieces)))
        assert example.original_tokens == vocabulary.encode("extraordinarily red", 32)
        seen.add(len(example.masked))
    assert seen == {1, pieces}


def test_a_text_without_a_word_is_a_bad_sample(vocabulary):
    with pytest.raises(BadSample, match="the text is empty"):
        task(vocabulary).example({"txt": "  "}, None)
