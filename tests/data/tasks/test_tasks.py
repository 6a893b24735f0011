"""Options of tasks: synonyms, templates of text classification, shares of masks, end-of-text after words."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from data.batch import Scope
from data.config import MixConfig, TaskConfig
from data.decode.image import encode_png
from data.shards import DatasetError, DatasetInfo, SplitInfo
from data.shards.errors import BadSample
from data.tasks import kind_of, make_task
from data.tasks.base import Pixels, TaskContext, label_of
from data.tasks.candidates import WordCandidates
from data.tasks.template import _shortened
from data.text import tokenizer
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.full(Tokenizer.load())


def info(kind: str, classes: tuple[str, ...] = (), **options) -> DatasetInfo:
    return DatasetInfo(kind=kind, classes=classes, token_ids=(), splits={"train": SplitInfo(1, 1)}, **options)


def task(vocabulary: Vocabulary, about: DatasetInfo, **options):
    config = TaskConfig(name="t", path="nowhere", **options)
    return make_task(TaskContext(config, about, vocabulary, Pixels(16, 8)))


def image(label: int) -> dict:
    pixels = np.full((16, 16, 3), 40 * label, np.uint8)
    return {"png": encode_png(pixels), "cls": str(label).encode()}


def test_a_name_of_each_class_is_drawn_in_training_alone(vocabulary):
    about = info("image_class", ("cat", "dog"), synonyms=(("kitten", "puss"), ()))
    made = task(vocabulary, about, kind="classification")
    examples = [made.example(image(0), None), made.example(image(1), None)]

    def names(generator) -> list[str]:
        values = made.batch(examples, generator).candidates.segments[0].values
        return [vocabulary.decode(row.tolist()).strip() for row in values]

    assert names(None) == ["cat", "dog"]
    drawn = [names(np.random.default_rng(seed)) for seed in range(40)]
    assert {first for first, _ in drawn} == {"cat", "kitten", "puss"} and {second for _, second in drawn} == {"dog"}
    with pytest.raises(ValueError, match="synonyms of 1 classes, but there are 2"):
        info("image_class", ("cat", "dog"), synonyms=(("kitten",),))


@pytest.mark.parametrize(
    ("names", "max_text"), [(("Cat", "cat", "dog"), 8), (("a very long name one", "a very long name two"), 4)]
)
def test_classes_that_are_one_to_the_model_are_refused_when_a_data_set_is_opened(vocabulary, names, max_text):
    with pytest.raises(DatasetError, match=r"task t: classes .* are one to the model"):
        task(vocabulary, info("image_class", names), kind="classification", max_text=max_text)


def test_candidates_of_all_ranks_are_for_training_alone(vocabulary):
    made = task(vocabulary, info("image_caption"), kind="retrieval", candidates="global")
    sample = {"__key__": "0", "png": image(0)["png"], "txt": b"a cat"}
    examples = [made.example(sample, None)] * 2
    assert made.batch(examples, np.random.default_rng(0)).scope == Scope.GLOBAL
    assert made.batch(examples, None).scope == Scope.LOCAL


def test_pairs_that_are_alike_are_told(vocabulary):
    """By the image's file, whatever is cut out of it, and by the caption's tokens, as far as the model sees them."""
    made = task(vocabulary, info("image_caption"), kind="retrieval", max_text=4, crop_scale=(0.5, 1.0))

    def batch(*samples: tuple[int, str], generator=None):
        examples = [
            made.example({"png": image(number)["png"], "txt": text.encode()}, np.random.default_rng(place))
            for place, (number, text) in enumerate(samples)
        ]
        return made.batch(examples, generator)

    assert batch((0, "a"), (1, "b"), (2, "c")).alike_Q2 is None
    same_image = batch((0, "a"), (1, "b"), (0, "c")).alike_Q2
    assert same_image is not None
    assert [len(column.unique()) for column in same_image.T] == [2, 3] and same_image[0, 0] == same_image[2, 0]
    cut = batch((0, "a red dog runs"), (1, "b"), (2, "A  red dog sits")).alike_Q2
    assert cut is not None and cut[0, 1] == cut[2, 1] and len(cut[:, 0].unique()) == 3
    shared = task(vocabulary, info("image_caption"), kind="retrieval", candidates="global")
    examples = [shared.example({"png": image(n)["png"], "txt": b"%d" % n}, None) for n in range(2)]
    assert shared.batch(examples, np.random.default_rng(0)).alike_Q2 is not None  # other ranks may have the same


def test_mixed_batches_carry_both_labels(vocabulary):
    made = task(vocabulary, info("image_class", ("cat", "dog")), kind="classification", mix=MixConfig(mixup=1.0))
    examples = [made.example(image(label), None) for label in (0, 1, 1)]
    batch = made.batch(examples, np.random.default_rng(0))
    assert batch.second_labels_Q.tolist() == [1, 1, 0] and 0 < batch.second_share < 1
    assert made.batch(examples, None).second_labels_Q is None
    with pytest.raises(ValueError, match="class labels, which captioning does not have"):
        kind_of(config := TaskConfig(name="t", path="p", kind="captioning", mix=MixConfig(mixup=1.0))).check(config)


def test_text_is_read_at_the_template_s_place(vocabulary):
    about = info("text_class", ("bad", "wonderful"))
    made = task(vocabulary, about, kind="text_classification", template="{text} it was <spe> .", max_text=16)
    example = made.example({"txt": b"a fine film", "cls": b"1"}, None)
    assert vocabulary.decode(example.tokens[: example.place]).strip() == "a fine film it was"
    assert example.tokens[example.place] == vocabulary.spe and example.tokens[-1] == vocabulary.end
    batch = made.batch([example, made.example({"txt": b"dull", "cls": b"0"}, None)], None)
    assert batch.read_Q2.tolist() == [[0, 1 + 5], [1, 1 + 3]] and batch.labels_Q.tolist() == [1, 0]
    assert batch.candidates.num_rows == 2
    assert batch.candidates.segments[0].attributes == (1, 1, 0, 1, 0, 1, 1, 0)


def test_long_text_gives_way_to_the_template(vocabulary):
    made = task(
        vocabulary, info("text_class", ("no", "yes")), kind="text_classification", template="<spe> {text} ?", max_text=8
    )
    example = made.example({"txt": b"one two three four five six seven eight nine", "cls": b"0"}, None)
    assert len(example.tokens) <= 8 and example.place == 0
    assert vocabulary.decode(example.tokens[1:-1]).strip().endswith("?")


def test_a_template_that_leaves_no_place_for_a_text_is_refused(vocabulary):
    """`a b c <spe>` and the end are five tokens: six leave one for a text."""
    options = {"kind": "text_classification", "template": "a b c {text} <spe>"}
    about = info("text_class", ("no", "yes"))
    made = task(vocabulary, about, max_text=6, **options)
    assert vocabulary.decode(made.example({"txt": b"red dog", "cls": b"0"}, None).tokens[3:4]).strip() == "red"
    with pytest.raises(DatasetError, match="has 5 tokens without a text: raise max_text=5 above that, or shorten it"):
        task(vocabulary, about, max_text=5, **options)


@pytest.mark.parametrize("score", ["9" * 400, "true", '"3"', "NaN"])
def test_a_score_that_is_no_number_is_a_bad_sample(vocabulary, score):
    made = task(vocabulary, info("text_class", ("no", "yes")), kind="text_classification")
    with pytest.raises(BadSample, match=r"must be a number|json"):
        made.example({"txt": b"a", "cls": b"1", "json": f'{{"score": {score}}}'.encode()}, None)


@pytest.mark.parametrize("text", ["x" * 300, "\u4f60\u597d" * 40, "http://a.example/" + "b/" * 60 + " end"])
def test_text_without_spaces_is_cut_and_not_lost(vocabulary, text):
    made = task(
        vocabulary, info("text_class", ("no", "yes")), kind="text_classification", template="{text} <spe>", max_text=16
    )
    example = made.example({"txt": text.encode(), "cls": b"0"}, None)
    assert 8 < len(example.tokens) <= 16
    assert example.tokens[:2] == vocabulary.encode(text, 1 << 20)[:2]


def test_a_sample_without_its_text_is_a_bad_sample(vocabulary):
    made = task(vocabulary, info("text_class", ("no", "yes")), kind="text_classification")
    with pytest.raises(BadSample, match="no member txt"):
        made.example({"__key__": "a", "cls": b"1"}, None)


@pytest.mark.parametrize("template", ["{text}", "<spe>", "{text} {text} <spe>", "{text} <spe> <spe>"])
def test_templates_need_both_places(template):
    with pytest.raises(ValueError, match="each once"):
        TaskConfig(name="t", path="p", kind="text_classification", template=template)


@pytest.mark.parametrize(
    ("shares", "spe", "same"), [((1.0, 0.0), 1.0, 0.0), ((0.0, 0.0), 0.0, 1.0), ((0.5, 0.0), 0.5, 0.5)]
)
def test_shares_of_masks(vocabulary, shares, spe, same):
    made = task(vocabulary, info("text"), kind="masked_text", mask_shares=shares, mask_rate=0.5, max_text=256)
    text = " ".join(["red", "blue", "green", "square"] * 50).encode()
    example = made.example({"txt": text}, np.random.default_rng(0))
    now = np.array(example.tokens)[example.masked]
    assert (now == vocabulary.spe).mean() == pytest.approx(spe, abs=0.12)
    assert (now == np.array(example.originals)).mean() == pytest.approx(same, abs=0.12)
    assert example.original_tokens == vocabulary.encode(text.decode(), 256)


def test_words_may_end_as_in_the_public_code():
    small = Vocabulary.restricted(Tokenizer.load(), Tokenizer.load().encode("red blue"))
    assert WordCandidates(small).all.segments[0].values.tolist() == [[0], [1], [small.end]]
    ended = WordCandidates(small, word_end=True).all.segments[0].values
    assert ended.tolist() == [[0, small.end], [1, small.end], [small.end, small.end]]


def test_augmentation_is_for_training_alone(vocabulary):
    options = {"kind": "classification", "rand_augment": (2, 9.0), "erase": 1.0}
    made = task(vocabulary, info("image_class", ("a", "b", "c")), **options)
    plain = dataclasses.replace(made.context.config, rand_augment=(0, 0.0), erase=0.0)
    bare = make_task(dataclasses.replace(made.context, config=plain))
    assert np.array_equal(made.example(image(2), None).visual.patches, bare.example(image(2), None).visual.patches)
    first, again = (made.example(image(2), np.random.default_rng(1)).visual.patches for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, bare.example(image(2), np.random.default_rng(1)).visual.patches)


def test_evaluation_hides_words_whatever_the_shares(vocabulary):
    masks = task(vocabulary, info("text"), kind="masked_text", mask_shares=(0.0, 0.0))
    example = masks.example({"txt": "a red circle left of a blue square"}, None)
    assert [example.tokens[place] for place in example.masked] == [vocabulary.spe] * len(example.masked)


def test_masked_text_draws_one_caption_a_visit(vocabulary):
    masks = task(vocabulary, info("image_caption"), kind="masked_text")
    sample = {"json": b'{"captions": ["red", "blue", "green"]}'}

    def seen(generator):
        return vocabulary.decode(masks.example(sample, generator).original_tokens).strip()

    assert {seen(np.random.default_rng(seed)) for seed in range(30)} == {"red", "blue", "green"}
    assert seen(np.random.default_rng(3)) == seen(np.random.default_rng(3)) and seen(None) == "red"


@pytest.mark.parametrize(("size", "side"), [(16, 2), (24, 3)])
def test_one_data_set_at_two_image_sizes(vocabulary, size, side):
    config = TaskConfig(
        name="t", path="nowhere", kind="classification", rand_augment=(2, 9), erase=1.0, mix=MixConfig(cutmix=1.0)
    )
    pairs = task(vocabulary, info("image_class", ("red", "blue")), kind="classification").context
    made = make_task(dataclasses.replace(pairs, config=config, pixels=Pixels(size, 8)))
    batch = made.batch([made.example(image(i), np.random.default_rng(i)) for i in (0, 1)], np.random.default_rng(0))
    segment = batch.inputs.segments[0]
    # Only the grid grows: side x side patches of 8 x 8 x 3 values, positions in whole patches whatever the size.
    assert segment.values.shape == (2, side * side, 192)
    assert segment.positions[0].tolist() == [[0, row, column] for row in range(side) for column in range(side)]


@pytest.mark.parametrize("kind", ["masked_text", "captioning"])
def test_words_are_sampled_in_training_alone_and_smoothed_where_all_are_there(vocabulary, kind):
    small = Vocabulary.restricted(
        vocabulary.tokenizer, vocabulary.tokenizer.encode("a red circle on the left of blue squares")
    )
    about = info("image_caption")
    config = TaskConfig(name="t", path="p", kind=kind, max_text=8, label_smoothing=0.2)
    sample = {"png": encode_png(np.zeros((16, 16, 3), np.uint8)), "json": b'{"captions": ["a red circle"]}'}
    batches = {}
    for sampled in (0, 6):
        made = make_task(TaskContext(config, about, small, Pixels(16, 8), vocabulary_sample=sampled))
        for generator in (None, np.random.default_rng(0)):
            batches[sampled, generator is None] = made.batch([made.example(sample, generator)], generator)
    assert {key: batch.candidates.num_rows for key, batch in batches.items()} == {
        (0, True): small.num_candidates, (0, False): small.num_candidates, (6, True): small.num_candidates, (6, False): 6,
    }  # fmt: skip
    assert [batch.label_smoothing for batch in batches.values()] == [0.2, 0.2, 0.2, 0.0]


def test_a_long_text_loses_half_as_many_words_as_tokens_are_too_many():
    assert _shortened("a b c d e f", 4) == "a b c d"  # two words less
    assert _shortened("a b", 1) == "a" and _shortened("a b", 100) == "a"
    assert _shortened("abcdefgh", 4) == "abcdef" and _shortened("ab", 1) == "a"


@pytest.mark.parametrize("kind", ["captioning", "retrieval", "masked_text"])
@pytest.mark.parametrize(
    ("captions", "used"),
    [
        (["&nbsp;", "red"], ["red"]),
        (["", "red", " ", "blue"], ["red", "blue"]),
        ([None, "red"], ["red"]),
        (["\u200b", "..."], ["..."]),
        (["\ud800", "red"], ["\ufffd", "red"]),
    ],
)
def test_captions_without_a_word_are_left_out_where_there_are_others(vocabulary, kind, captions, used):
    made = task(vocabulary, info("image_caption"), kind=kind)
    sample = {"png": encode_png(np.zeros((16, 16, 3), np.uint8)), "json": json.dumps({"captions": captions}).encode()}
    seen = set()
    for generator in (None, *map(np.random.default_rng, range(20))):
        example = made.example(sample, generator)
        tokens = example.original_tokens if kind == "masked_text" else example.tokens
        seen.add(vocabulary.decode(tokens).strip())
    assert seen == set(used)


@pytest.mark.parametrize("kind", ["captioning", "retrieval", "masked_text"])
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": {"captions": ["&nbsp;"]}}, "none of the 1 in json has a word"),
        ({"json": {"captions": ["", " ", None]}}, "none of the 3 in json has a word"),
        ({"json": {"captions": []}}, "none of the 0 in json has a word"),
        ({"json": {"captions": ["red", 5]}}, 'a list "captions" of strings'),
        ({"json": {"captions": "red"}}, 'a list "captions" of strings'),
        ({"json": {}}, 'a list "captions" of strings'),
        ({"txt": "&nbsp;"}, "the text '&nbsp;' has no word"),
        ({"txt": "\u00ad"}, "has no word"),
        ({}, "needs txt, or json"),
    ],
)
def test_a_sample_without_a_caption_is_a_bad_sample(vocabulary, kind, members, reason):
    made = task(vocabulary, info("image_caption"), kind=kind)
    encoded = {key: value.encode() if key == "txt" else json.dumps(value).encode() for key, value in members.items()}
    with pytest.raises(BadSample, match=reason):
        made.example({"png": encode_png(np.zeros((16, 16, 3), np.uint8)), **encoded}, None)


def test_a_text_of_a_megabyte_is_classified_in_time(vocabulary, monkeypatch):
    made = task(vocabulary, info("text_class", ("no", "yes")), kind="text_classification", max_text=16)
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), size=1 << 20))
    letters: list[int] = []
    merge = tokenizer._merge_pairs
    monkeypatch.setattr(
        tokenizer, "_merge_pairs", lambda units, ranks: letters.append(len(units)) or merge(units, ranks)
    )
    example = made.example({"txt": text, "cls": b"1"}, None)
    assert 8 < len(example.tokens) <= 16 and sum(letters) < len(text) // 4


@pytest.mark.parametrize("content", [b"1", b" 1\n", b"+1", b"01", b"\xef\xbb\xbf1\r\n"])
def test_a_class_number(content):
    assert label_of({"cls": content}, info("image_class", classes=("cat", "dog"))) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"-1", "class -1 of 2: cls counts from 0"),
        (b"2", "class 2 of 2"),
        *(
            (content, "no class index in member cls, which has")
            for content in (b"", b"1.0", b"1e0", b"1_0", b"0x1", b"true", b"1 0", b"9" * 20)
        ),
        ("\u0661".encode(), "no class index"),  # the Arabic digit 1
    ],
)
def test_no_class_number(content, reason):
    with pytest.raises(BadSample, match=re.escape(reason)):
        label_of({"cls": content}, info("image_class", classes=("cat", "dog")))
