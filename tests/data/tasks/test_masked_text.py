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


LINES = {
    "Japanese": "\u8d64\u3044\u30dc\u30fc\u30eb\u3092\u8ffd\u3044\u304b\u3051\u308b\u9ed2\u3044\u72ac",
    "Chinese": "\u4e24\u4e2a\u5b69\u5b50\u5728\u6d77\u6ee9\u4e0a\u73a9\u800d\u770b\u7740\u5927\u6d77",
    "Thai": "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e2a\u0e35\u0e14\u0e33\u0e01\u0e33\u0e25\u0e31\u0e07\u0e27\u0e34\u0e48\u0e07",
    "Khmer": "\u1786\u17d2\u1780\u17c2\u1781\u17d2\u1798\u17c5\u1780\u17c6\u1796\u17bb\u1784\u179a\u178f\u17cb",
    "Burmese": "\u1001\u103d\u1031\u1038\u1014\u1000\u103a\u1015\u103c\u1031\u1038\u1014\u1031\u101e\u100a\u103a",
    "one Korean word": "\uac15\uc544\uc9c0\ub4e4\uc5d0\uac8c\uc11c",
    "one German word": "Donaudampfschifffahrtsgesellschaft",
    "three letters": "\u9ed2\u3044\u72ac",
    "an address": "https://example.org/a/b",
    "emoji and text": "\U0001f600\U0001f602\U0001f60d \u72ac\u304c\u3044\u308b",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("of", ["full", "spelled"])
def test_a_line_is_never_masked_as_a_whole(vocabulary, line, of):
    made = task(Vocabulary.full(vocabulary.tokenizer) if of == "full" else vocabulary)
    whole = len(made.vocabulary.encode(line, 128)) - 1
    shares = []
    for example in [*examples(made, 20, line), made.example({"txt": line}, None)]:
        assert 0 < len(example.masked) < whole
        shares.append(len(example.masked) / whole)
    # A letter or a short token at least, so short lines lose more.
    assert np.mean(shares) < 0.15 + 6 / whole


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
def test_a_high_rate_leaves_a_word(vocabulary, rate):
    assert {len(example.masked) for example in examples(task(vocabulary, mask_rate=rate), 3, "red blue")} == {1}


@pytest.mark.parametrize("text", ["red", "\u72ac"])
def test_a_text_of_one_letter_or_token_has_nothing_else_to_mask(vocabulary, text):
    made = task(Vocabulary.full(vocabulary.tokenizer))
    assert made.example({"txt": text}, None).masked == list(range(len(made.vocabulary.encode(text, 9)) - 1))


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


@pytest.mark.parametrize(
    ("text", "reason"), [("  ", "the text is empty"), ("&nbsp;", "has no word"), ("\u200b", "has no word")]
)
def test_a_text_without_a_word_is_a_bad_sample(vocabulary, text, reason):
    with pytest.raises(BadSample, match=reason):
        task(vocabulary).example({"txt": text}, None)


def test_a_word_that_the_vocabulary_lacks_is_masked_and_scored(vocabulary):
    made = task(vocabulary, mask_rate=0.5, mask_shares=(1.0, 0.0))
    for generator in (None, np.random.default_rng(0)):
        examples = [made.example({"txt": text}, generator) for text in ("red zebra", "zebra red", "red blue")]
        batch = made.batch(examples, generator)
        tokens = batch.candidates.segments[0].values[batch.labels_Q, 0].tolist()
        assert tokens == [token for example in examples for token in example.originals]
