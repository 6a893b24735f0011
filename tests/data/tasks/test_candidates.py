"""The contract's checks, vocabularies and candidate sets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from data.attributes import (
    CAPTION_TEXT,
    CAPTION_VISUAL,
    NAME_TARGET,
    TEXT_INPUT,
    VISUAL_INPUT,
    WORD_TARGET,
)
from data.batch import Modality
from data.seeding import rng
from data.tasks.candidates import WordCandidates
from data.tasks.segments import readout_segment, text_segment, visual_segment
from data.text.tokenizer import SPE, Tokenizer
from data.text.vocabulary import UnknownTokenError, Vocabulary
from tests.helpers.batches import masked_text, retrieval


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load()


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.restricted(tokenizer, tokenizer.encode("a red circle left of a blue square"))


def test_attribute_vectors_are_the_released_table():
    table = {
        VISUAL_INPUT: "10011000",
        NAME_TARGET: "10010110",
        TEXT_INPUT: "01010100",
        CAPTION_VISUAL: "11011000",
        CAPTION_TEXT: "11010101",
        WORD_TARGET: "11010110",
    }
    for vector, bits in table.items():
        assert "".join(map(str, vector)) == bits


def test_text_segment_by_hand():
    segment = text_segment([[5, 6, 7], [8]], TEXT_INPUT)
    assert segment.values.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert segment.positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert segment.valid_BL.tolist() == [[True] * 3, [True, False, False]]
    assert readout_segment([2, 1], 9, CAPTION_TEXT).values.tolist() == [[9, 9], [9, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_Q": torch.tensor([0])}, "as many labels"),
        ({"labels_Q": torch.tensor([0, 1, 99])}, "label 99 of 7"),
        ({"symmetric": True}, "one candidate per read-out"),
        ({"label_smoothing": 0.1}, "sampled candidates"),
        ({"second_labels_Q": torch.tensor([0]), "second_share": 0.3}, "as many second labels"),
        ({"second_labels_Q": torch.tensor([0, 1, 99]), "second_share": 0.3}, "label 99 of 7"),
    ],
)
def test_a_task_batch_checks_itself(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(masked_text(), **change)


def test_segments_check_themselves():
    grid = np.zeros((4, 3), dtype=np.int64)
    segment = visual_segment([np.zeros((4, 12), np.float32)], [grid], Modality.IMAGE, VISUAL_INPUT)
    with pytest.raises(ValueError, match="IMAGE values must be"):
        dataclasses.replace(segment, values=torch.zeros(1, 3, 12))
    with pytest.raises(ValueError, match="must be bool"):
        dataclasses.replace(segment, valid_BL=torch.ones(1, 4))
    assert retrieval().to("cpu").inputs.num_tokens == 4 * 5


def test_full_vocabulary_keeps_clip_ids(tokenizer):
    full = Vocabulary.full(tokenizer)
    assert full.size == 49411 and full.spe == SPE and full.num_candidates == 49407
    assert full.encode("a red circle", 8) == [*tokenizer.encode("a red circle"), full.end]


def test_restricted_vocabulary(vocabulary):
    # Seven words, of which "a" is a byte that ends a word; 511 other bytes; five specials.
    assert vocabulary.size == 7 + 511 + 5 and vocabulary.num_candidates == 8 and vocabulary.num_spelling == 511
    ids = vocabulary.encode("a blue circle", 8)
    assert max(ids) < vocabulary.size and ids[-1] == vocabulary.end
    assert vocabulary.decode(ids).strip() == "a blue circle"
    assert vocabulary.words(ids) == [[0], [1], [2]]
    assert len(vocabulary.encode("a red circle left of a blue square", 4)) == 4
    for candidate in range(vocabulary.num_candidates + vocabulary.num_spelling):
        assert vocabulary.candidate(vocabulary.candidate_token(candidate)) == candidate


def test_a_vocabulary_of_an_earlier_version_cannot_spell(tokenizer, vocabulary):
    closed = Vocabulary.closed(tokenizer, tokenizer.encode("a red circle left of a blue square"))
    assert closed.size == 7 + 5 and closed.num_candidates == 8 and closed.num_spelling == 0
    assert closed.encode("a red circle", 8)[:3] == vocabulary.encode("a red circle", 8)[:3]
    with pytest.raises(UnknownTokenError, match=r"'green '.*restricted vocabulary of 12 tokens.*start a run anew"):
        closed.encode("a green circle", 8)


@pytest.mark.parametrize(
    "text",
    ["a green circle", "zebras!", "28 it's light-up", "M\u00e4dchen", "\u4e00\u53ea\u72d7", "\u0e17\u0e35\u0e48", "\U0001f600",
     "\u0645\u0631\u062d\u0628\u0627", "\ufffd", "x" * 60, "\ud800"],
)  # fmt: skip
def test_any_text_is_spelled(vocabulary, text):
    ids = vocabulary.encode(text, 1 << 10)
    assert vocabulary.decode(ids) == vocabulary.copied(text)
    assert all(0 <= own < vocabulary.size for own in ids) and ids[-1] == vocabulary.end
    assert vocabulary.encode(text, 4) == [*ids[:3], vocabulary.end][:4]
    # Known words keep their tokens, and the others are bytes, as many as the text has.
    assert vocabulary.encode(f"red {text}", 1 << 10)[0] == vocabulary.encode("red", 8)[0]
    words = vocabulary.words(ids)
    assert sorted(position for word in words for position in word) == list(range(len(ids) - 1))


def test_bytes_are_candidates_where_a_word_needs_them_alone(vocabulary):
    words = WordCandidates(vocabulary)
    green = vocabulary.encode("green", 8)[:-1]
    assert len(green) == 5 and all(own >= vocabulary.num_words for own in green)
    targets = words.targets([2, *green, vocabulary.end], 0, rng(0))
    tokens = targets.candidates.segments[0].values[:, 0]
    assert len(tokens) == 8 + 511 and tokens[targets.labels_Q].tolist() == [2, *green, vocabulary.end]
    assert words.all.num_rows == 8 and words.targets([2], 0, rng(0)).candidates is words.all
    assert torch.equal(tokens[:8], words.all.segments[0].values[:, 0])
    assert torch.equal(tokens[8:], words.spelling.segments[0].values[:, 0])
    sampled = words.targets([2, *green], 7, rng(0))
    found = sampled.candidates.segments[0].values[:, 0][sampled.labels_Q]
    assert found.tolist() == [2, *green] and sampled.candidates.num_rows == 7


def test_all_words_as_candidates(vocabulary):
    words = WordCandidates(vocabulary).all
    assert words.segments[0].values[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, vocabulary.end]
    targets = WordCandidates(vocabulary).targets([2, vocabulary.end], 0, rng(0))
    assert targets.labels_Q.tolist() == [2, 7] and targets.log_weights_C is None


def test_sampled_words_estimate_the_whole_sum_without_bias(vocabulary):
    scores = torch.linspace(-1, 1, vocabulary.num_candidates)
    estimates = []
    for seed in range(400):
        targets = WordCandidates(vocabulary).targets([2, 5, 2], 5, rng(seed))
        tokens = targets.candidates.segments[0].values[:, 0].tolist()
        assert len(tokens) == 5 and tokens[:2] == [2, 5] and targets.labels_Q.tolist() == [0, 1, 0]
        assert targets.log_weights_C is not None
        # Two own words stand for themselves, three of the six others for two each.
        assert targets.log_weights_C.tolist() == pytest.approx([0, 0] + [math.log(2)] * 3)
        own = scores[[vocabulary.candidate(token) for token in tokens]]
        estimates.append(float((own + targets.log_weights_C).exp().sum()))
    assert np.mean(estimates) == pytest.approx(float(scores.exp().sum()), rel=0.05)


def test_a_sample_too_small_for_the_batch_is_an_error(vocabulary):
    with pytest.raises(ValueError, match="vocabulary_sample=3"):
        WordCandidates(vocabulary).targets([0, 1, 2, 3], 3, rng(0))
