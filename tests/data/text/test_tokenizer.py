"""The tokenizer against the reference's encodings and against the algorithm written plainly."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import json
import pickle
import random
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text import tokenizer as module
from data.text.tokenizer import END_OF_TEXT, GEN, MASK, SPE, START_OF_TEXT, Tokenizer, VocabularyFileError
from tests.helpers.places import ROOT, SHARED

GOLDEN = ROOT / "tests" / "golden" / "numbers" / "tokenizer.json"
ALL_GOLDEN = SHARED / "golden" / "tokenizer.json"


@functools.cache
def loaded() -> Tokenizer:
    return Tokenizer.load()


@pytest.fixture
def clip() -> Tokenizer:
    return loaded()


@pytest.mark.parametrize("path", [GOLDEN, pytest.param(ALL_GOLDEN, marks=pytest.mark.shared)], ids=["compact", "full"])
def test_equals_the_reference_on_every_row(clip, path):
    golden = json.loads(path.read_text())
    assert golden["vocab_size"] == clip.vocab_size
    for row in golden["rows"]:
        assert clip.encode(row["text"], specials=True) == row["ids"], row["text"]
        assert clip.words(row["text"]) == row["basic_tokens"], row["text"]
        assert clip.decode(row["ids"]) == row["decoded"], row["text"]


def test_ids_of_the_specials(clip):
    assert (START_OF_TEXT, END_OF_TEXT, MASK, GEN, SPE) == (49406, 49407, 49408, 49409, 49410)
    assert clip.vocab_size == 49411
    assert clip.encode("<|SPE|> a <|endoftext|>", specials=True) == [SPE, 320, END_OF_TEXT]


def test_data_cannot_write_specials(clip):
    written = clip.encode("<|spe|> a <|startoftext|><|endoftext|>")
    assert max(written) < START_OF_TEXT
    assert clip.decode(written).replace(" ", "") == "<|spe|>a<|startoftext|><|endoftext|>"


def test_a_number_too_long_for_a_character_is_text(clip):
    assert clip.encode("a &#" + "9" * 5000 + "; b")[-1] == clip.encode("b")[0]


def test_merges_by_hand():
    # 256 bytes, 256 bytes that end a word, then the merges: "ab" is 512, "abc</w>" 513. Printable bytes come
    # first, from "!" (33) on: "a" (97) is 64, and "b" that ends a word 256 + 65.
    small = Tokenizer([("a", "b"), ("ab", "c</w>")])
    assert small.encode("abc") == [513]
    assert small.encode("ab") == [64, 256 + 65]
    assert small.encode("ababc") == [512, 513]
    assert small.decode([512, 513]) == "ababc "


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="abenrst ", min_size=1, max_size=60))
def test_heap_of_merges_equals_merging_pair_by_pair(text):
    clip = loaded()
    for word in text.split():
        assert module._merge_pairs([*word[:-1], word[-1] + "</w>"], clip._ranks) == plainly(word, clip._ranks)


def plainly(word, ranks):
    """Join all occurrences of the best pair, again and again."""
    units = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in itertools.pairwise(units) if pair in ranks]
        if not pairs:
            return units
        best = min(pairs, key=ranks.__getitem__)
        joined, position = [], 0
        while position < len(units):
            step = 2 if tuple(units[position : position + 2]) == best else 1
            joined.append("".join(units[position : position + step]))
            position += step
        units = joined


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_encoded(text):
    clip = loaded()
    ids = clip.encode(text)
    assert all(0 <= index < clip.vocab_size for index in ids)
    assert sorted(p for group in clip.word_groups(ids) for p in group) == list(range(len(ids)))


MEGABYTE = {
    "random letters": "".join(random.Random(0).choices(string.ascii_letters, k=1 << 20)),
    "one letter": "a" * (1 << 20),
    "signs": "!?~" * (1 << 18),
    "Chinese": "\u4f60\u597d\u5417" * (1 << 17),
}


@pytest.mark.parametrize("word", MEGABYTE.values(), ids=MEGABYTE)
def test_the_first_tokens_of_a_long_word_take_no_minutes(clip, monkeypatch, word):
    merged: list[int] = []
    merge = module._merge_pairs
    monkeypatch.setattr(module, "_merge_pairs", lambda units, ranks: merged.append(len(units)) or merge(units, ranks))
    ids = Tokenizer(clip._merges).encode(word, limit=64)
    # Work is for one part of the word, whose letters have three bytes at most.
    assert len(merged) == 1 and max(merged) <= 3 * module._MAX_WORD
    assert ids == clip.encode(word[:2000])[:64]


def test_a_long_word_stays_one_word(clip, monkeypatch):
    monkeypatch.setattr(module, "_MAX_WORD", 8)
    small = Tokenizer(clip._merges)
    ids = small.encode("abcdefgh" * 3 + "x dog")
    assert small.decode(ids) == "abcdefgh" * 3 + "x dog "
    assert len(small.word_groups(ids)) == 2
    # Just as long as a part: the same as before.
    assert small.encode("abcdefgh") == clip.encode("abcdefgh")


def test_limits_are_beginnings(clip):
    ids = clip.encode("a firetruck and a dog")
    assert [clip.encode("a firetruck and a dog", limit=n) for n in range(8)] == [ids[:n] for n in range(8)]


def test_tokens_are_spelled_by_their_bytes(clip):
    for token in (*range(0, 512, 7), *range(512, START_OF_TEXT, 499)):
        spelled = clip.spelled(token)
        assert all(byte < 512 for byte in spelled)
        assert b"".join(map(clip.bytes_of, spelled)) == clip.bytes_of(token)
        assert [clip.ends_word(byte) for byte in spelled] == [False] * (len(spelled) - 1) + [clip.ends_word(token)]


def test_word_groups_are_the_words(clip):
    ids = [SPE, *clip.encode("a firetruck !"), END_OF_TEXT]
    assert [clip.decode([i]) for i in ids[2:4]] == ["fire", "truck "]
    assert clip.word_groups(ids) == [[0], [1], [2, 3], [4], [5]]
    assert clip.word_groups(ids[:3]) == [[0], [1], [2]]  # cut inside the word
    assert clip.word_groups([]) == []


def test_decode_refuses_unknown_ids(clip):
    with pytest.raises(ValueError, match="49411"):
        clip.decode([49411])


def test_copies_to_other_processes(clip):
    copy = pickle.loads(pickle.dumps(clip))
    assert copy.encode("a red circle") == clip.encode("a red circle")


def test_absent_vocabulary_names_the_remedy(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(VocabularyFileError, match="pip install --no-deps open_clip_torch"):
        Tokenizer.load()


def test_wrong_vocabulary_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "vocabulary.txt.gz"
    other.write_bytes(b"something else")
    monkeypatch.setattr(module, "_vocabulary_path", lambda: other)
    with pytest.raises(VocabularyFileError, match="sha256"):
        Tokenizer.load()


def test_imports_neither_torch_nor_open_clip():
    code = "import sys, data.text.tokenizer as t; t.Tokenizer.load(); print({'torch', 'open_clip'} & {*sys.modules})"
    root = ROOT
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
