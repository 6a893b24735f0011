"""Words as metrics count them, whether a text has any, and what is masked together."""

from __future__ import annotations

import shutil
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.text.vocabulary import Vocabulary
from data.text.words import has_word, units_to_mask, words_of
from tests.helpers.streams import tokenizer


@pytest.fixture(scope="module")
def full() -> Vocabulary:
    return Vocabulary.full(tokenizer())


# What Stanford's tokenizer and the field's list of punctuation leave, words parted by spaces.
TREEBANK = [
    ("A red circle, isn't it?", "a red circle is n't it"),
    ("It's the boy's; they're his dogs' toys.", "it 's the boy 's they 're his dogs toys"),
    ("I'm sure we've said you'd do what he'll do", "i 'm sure we 've said you 'd do what he 'll do"),
    ("He can't and cannot, won't, don't", "he ca n't and can not wo n't do n't"),
    ("gonna wanna gimme", "gon na wan na gim me"),
    ("a light-up shoe and a T-shirt", "a light-up shoe and a t-shirt"),
    ("a 20-year-old in his mid-20s", "a 20-year-old in his mid-20s"),
    ("28 of 10,000 at 2:30 for 3.5, 1/2", "28 of 10,000 at 2:30 for 3.5 1/2"),
    ("1990s cars, a 4x4 on 3rd St", "1990s cars a 4x4 on 3rd st"),
    ("50% of $5 & more", "50 % of $ 5 & more"),
    ("black/white and/or red", "black/white and/or red"),
    ("at 5 p.m. in the U.S. army", "at 5 p.m. in the u.s. army"),
    ("five o'clock, ma'am, says O'Brien", "five o'clock ma'am says o'brien"),
    ('"wait..." - he said; then -- nothing!', "wait he said then nothing"),
    ("dog--running dog \u2014 jumping dog\u2013sitting", "dog running dog jumping dog sitting"),
    ("a snake_case name", "a snake_case name"),
    ("Mr. Smith vs. Dr. Jones on Main St. at No. 5", "mr. smith vs. dr. jones on main st. at no. 5"),
    ("M\u00e4dchen caf\u00e9 Stra\u00dfe \u00f1and\u00fa", "m\u00e4dchen caf\u00e9 stra\u00dfe \u00f1and\u00fa"),
]


# The same of texts that a copy through the tokenizer does not keep, as it parts or joins them.
WRITTEN = [
    ("a man - smiling, gate 2 3", "a man smiling gate 2 3"),
    ("bus 4 , 555 is 5 x 7", "bus 4 555 is 5 x 7"),
    ("the man 's hat, it 's and they 're", "the man 's hat it 's and they 're"),
    ("a 1970's car of the '70s and a 9-year-old's", "a 1970 's car of the '70s and a 9-year-old 's"),
    ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
    ("a man w/ a hat / a cap", "a man w / a hat / a cap"),
    ("wow!!! really?! yes!", "wow !!! really ?! yes"),
    ("rock'n'roll, y'all, I'd've, 'em, 'tis", "rock 'n' roll y' all i 'd 've 'em 't is"),
    ("on grass.the dog's", "on grass.the dog 's"),
    ("3.5m at 12:30pm, -5 to +1, .5 of 2:30-3:30", "3.5 m at 12:30 pm -5 to +1 .5 of 2:30 -3:30"),
    ("#1 of #selfie to me@example.com at www.example.com", "# 1 of #selfie to me@example.com at www.example.com"),
    ("\u20ac5, \u00a35, \u00bd", "$ 5 # 5 1/2"),
    ("5p. 3.5-inch, 10ft", "5p 3.5-inch 10ft"),
    ("the letter b. on Jan. 5", "the letter b. on jan. 5"),
]


@pytest.mark.parametrize(("text", "words"), TREEBANK + WRITTEN)
def test_english_words_are_the_treebanks(text, words):
    assert words_of(text) == words.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Russian
        (
            "\u041a\u043e\u0448\u043a\u0430, \u0441\u043f\u0438\u0442!",
            ["\u043a\u043e\u0448\u043a\u0430", "\u0441\u043f\u0438\u0442"],
        ),
        ("\u03b7 \u03b3\u03ac\u03c4\u03b1", ["\u03b7", "\u03b3\u03ac\u03c4\u03b1"]),  # Greek
        # Hebrew, right to left
        (
            "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
            ["\u05e9\u05dc\u05d5\u05dd", "\u05e2\u05d5\u05dc\u05dd"],
        ),
        # Arabic with its punctuation
        (
            "\u0645\u0631\u062d\u0628\u0627\u060c \u0642\u0637\u0629\u061f",
            ["\u0645\u0631\u062d\u0628\u0627", "\u0642\u0637\u0629"],
        ),
        # Persian, a joiner inside the word
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            ["\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"],
        ),
        # Hindi
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093f\u0924\u093e\u092c\u0964",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0915\u093f\u0924\u093e\u092c"],
        ),
        ("\ud55c\uad6d\uc5b4\ub97c \ubc30\uc6b4\ub2e4.", ["\ud55c\uad6d\uc5b4\ub97c", "\ubc30\uc6b4\ub2e4"]),  # Korean has spaces
        ("\u4e00\u53ea\u72d7\u3002", ["\u4e00", "\u53ea", "\u72d7"]),  # Chinese
        ("\u30dc\u30fc\u30eb\u3068\u72ac", ["\u30dc", "\u30fc", "\u30eb", "\u3068", "\u72ac"]),  # Japanese
        ("\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48", ["\u0e17\u0e35\u0e48", "\u0e19\u0e35\u0e48"]),  # Thai, letters with their marks
        ("CD\u3092 3\u679a", ["cd", "\u3092", "3", "\u679a"]),  # mixed
        ("\u0664\u0662 \u096a\u0968", ["\u0664\u0662", "\u096a\u0968"]),  # digits
        ("\uff26\uff55\uff4c\uff4c\u3000\uff57\uff49\uff44\uff54\uff48", ["full", "width"]),
        ("a \U0001f600 dog \u2764\ufe0f", ["a", "\U0001f600", "dog", "\u2764"]),
        ("soft\u00adhyphen \u202eback\u202c", ["softhyphen", "back"]),
        ("two\u200bwords, tab\tnew\nline\x07", ["two", "words", "tab", "new", "line"]),
        ("it\u2019s it\u02bcs it`s it\uff07s it\u00b4s", ["it", "'s"] * 5),
        ("light\u2010up light\u2011up", ["light-up"] * 2),
        ("Tom &amp; Jerry", ["tom", "&", "jerry"]),
        ("lone \ud800 half", ["lone", "\ufffd", "half"]),
        ("... ! ? \u3002\u300c\u300d", []),
        ("&nbsp;", []),
        ("", []),
    ],
)  # fmt: skip
def test_letters_of_all_scripts_make_words(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize("text", ["M\u00e4dchen", "caf\u00e9 cr\u00e8me", "\uac15\uc544\uc9c0", "\u304c\u304e"])
def test_forms_of_one_text_have_the_same_words(text):
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len(forms) > 1 and len({tuple(words_of(form)) for form in forms}) == 1
    assert len({tuple(tokenizer().encode(form)) for form in forms}) == 1


@pytest.mark.skipif(not shutil.which("java"), reason="Stanford's tokenizer runs in Java, which is not here")
def test_they_are_what_stanfords_tokenizer_finds():
    oracle = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer", reason="pycocoevalcap is not installed (make setup EXTRAS=oracles)"
    )
    found = oracle.PTBTokenizer().tokenize(
        {key: [{"caption": text}] for key, (text, _) in enumerate(TREEBANK + WRITTEN)}
    )
    assert [found[key][0].split() for key in range(len(found))] == [words.split() for _, words in TREEBANK + WRITTEN]


@pytest.mark.parametrize("text", [text for text, _ in TREEBANK])
def test_a_copy_through_the_tokenizer_has_the_same_words(full, text):
    tokens = tokenizer().encode(text)
    assert words_of(full.decode(tokens)) == words_of(text)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=20))
@example("\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u093f\u0924\u093e\u092c")
@example("o'donnell's 4 5 - 6")
def test_a_reference_is_what_its_perfect_copy_is(text):
    full = Vocabulary.full(tokenizer())
    assert full.decode(full.encode(text, 1 << 20)) == full.copied(text)


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("28 dogs", "28 dogs"),
        ("it's", "it's"),
        ("a light-up shoe", "a light-up shoe"),
        ("at 2:30", "at 2:30"),
        ("1,000.5", "1,000.5"),
        ("u.s. army", "u.s. army"),
        ("five o'clock", "five o'clock"),
        ("2nd", "2nd"),
        ("wait , what", "wait , what"),
    ],
)
def test_decoding_undoes_what_can_be_undone(full, text, decoded):
    assert full.decode(full.encode(text, 32)).strip() == decoded


@pytest.mark.parametrize(
    "text",
    ["", " \t\n", "&nbsp;", "&amp;nbsp;", "\u00a0", "\u200b", "\ufeff", "\u00ad", "\u200d\u200c", "\u3164", "\u2800", "\x00\x07",
     "\u202e", "\u0301", "\u3000", "\ufe0f"],
)  # fmt: skip
def test_what_cannot_be_seen_is_no_word(text):
    assert not has_word(text)


@pytest.mark.parametrize(
    "text", ["a", "7", "...", "-", "\U0001f600", "\u72ac", "&amp;", "&#65;", "\ufffd", "\u0915\u093f"]
)
def test_what_can_be_seen_is_one(text):
    assert has_word(text)


def units(text):
    ids = tokenizer().encode(text)
    return [
        b"".join(tokenizer().bytes_of(ids[position]) for position in unit).decode()
        for unit in units_to_mask(tokenizer(), ids)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a firetruck isn't red!", ["a", "firetruck", "isn", "'t", "red", "!"]),
        ("\u72ac\u304c\u8d70\u308b", ["\u72ac", "\u304c", "\u8d70", "\u308b"]),
        ("\u4e00\u53ea\u72d7 runs", ["\u4e00", "\u53ea", "\u72d7", "runs"]),
        ("abc\u72d7", ["abc", "\u72d7"]),
        ("\u0e17\u0e35\u0e48 ok", ["\u0e17\u0e35\u0e48", "ok"]),
        ("\u0939\u093f x", ["\u0939\u093f", "x"]),
        ("\uac15\uc544\uc9c0 x", ["\uac15\uc544\uc9c0", "x"]),
    ],
)
def test_units_are_words_or_letters_where_there_are_no_spaces(text, expected):
    found = units(text)
    # Tokens of two letters exist and are not cut.
    assert "".join(found) == "".join(expected) and len(found) <= len(expected)
    assert all(word in found for word in expected if word.isascii())
    assert len(found) > 1


@pytest.mark.parametrize(
    "text",
    [
        "extraordinarily",
        "\uac15\uc544\uc9c0\ub97c",
        "Donaudampfschifffahrt",
        "\u043f\u0440\u0438\u0432\u0435\u0442\u0438\u043a\u0438",
    ],
)
def test_a_text_of_one_word_is_masked_by_its_letters(text):
    assert len(units(text)) > 1 and "".join(units(text)) == text.lower()
