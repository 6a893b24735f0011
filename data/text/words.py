"""What a word is: to metrics, to masks, and whether a text has any.

The tokenizer cuts text into pieces and drops the white space between them: "28" becomes "2 8", "it's" becomes "it 's", "light-up"
becomes "light - up". `joined` undoes what can be undone where pieces become a text; what somebody wrote is taken as it stands, as
"5 x 7" and "gate 2 3" are not "5x7" and "23".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import regex

from data.text.tokenizer import START_OF_TEXT, Tokenizer, cleaned
from data.text.treebank import ABBREVIATIONS, treebank_words

# Scripts written without spaces between words, and the signs that they share. Each letter is a word of its own, as the field's
# character-wise scores have it: cutting into words would need a dictionary for each language.
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}\p{Yi}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
)
_UNSPACED_LETTER = regex.compile(rf"[{_UNSPACED}]")
_PARTS = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^{_UNSPACED}]+")

# Signs that show nothing: white space, control and format characters, lone marks, fillers, the empty Braille cell.
_VISIBLE = regex.compile(r"[^\s\p{Z}\p{Cc}\p{Cf}\p{Cs}\p{M}\p{Default_Ignorable_Code_Point}\u2800]")
_MARK = regex.compile(r"[\p{M}\p{Join_Control}]")

_SUFFIX = r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})"
JOINS = tuple(
    (regex.compile(pattern), replacement)
    for pattern, replacement in (
        (r" ?(\p{Join_Control}) ", r"\1"),  # format characters and marks are pieces of their own
        (r" (?=\p{M})", ""),
        (r"(?<=\p{N}) (?=\p{N})", ""),  # 2 8
        (r"(?<=\p{N}) (?=(?:st|nd|rd|th|s|d)\b)", ""),  # 3 rd
        (r"(?<=\p{N}) ([.:x]) (?=\p{N})", r"\1"),  # 3 . 5
        (r"(?<=\p{N}) , (?=\p{N}{3}(?!\p{N}))", ","),  # 10 , 000, but not 2 , 3
        (r"(?<=[\p{L}\p{N}]) ([-/_]) (?=[\p{L}\p{N}])", r"\1"),  # light - up
        (rf"(?<=\p{{L}}) (?={_SUFFIX})", ""),  # it 's
        (r"\b([cdjlmnot]|ma|qu) ' (?=\p{L})", r"\1'"),  # o ' clock
        (rf"({ABBREVIATIONS}|(?<![\p{{L}}\p{{N}}'])(?:no(?= \. \p{{N}})|[a-z])) \.(?!\S)", r"\1."),  # mr .
    )
)
INITIALS = regex.compile(r"(?<![\p{L}\p{N}])\p{L}(?: \. \p{L}(?!\p{L}))+(?: \.)?")  # u . s .

# Before words are looked for: other signs that are written for an apostrophe or a hyphen inside a word, and those that show nothing.
_FOLDS = tuple(
    (regex.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\p{L})[`\u00b4\u02b9\u2032](?=\p{L})", "'"),
        (r"[\u2010\u2011]", "-"),
        (r"\u200b", " "),
        (r"\p{Cf}+", ""),
    )
)


def has_word(text: str) -> bool:
    """Whether anything can be seen of the text after cleaning: `&nbsp;` and a zero-width space are no words, a full stop is."""
    # Cleaning changes no plain text but for its entities; most texts are that, and there may be millions.
    plain = text.isascii() and "&" not in text
    return _VISIBLE.search(text if plain else cleaned(text)) is not None


def joined(text: str) -> str:
    """The tokenizer's pieces put together where that can be known: numbers, contractions, hyphens, initials, combining marks."""
    text = INITIALS.sub(lambda match: match[0].replace(" ", ""), text)
    for pattern, replacement in JOINS:
        text = pattern.sub(replacement, text)
    return text


def words_of(text: str) -> list[str]:
    """Words as metrics count them: lower-cased, without punctuation, as the Penn Treebank's tokenizer has them for English ("isn't"
    is two words, "light-up" is one); letters of all scripts, and each letter of scripts without spaces by itself."""
    return list(_words_of(text))


@functools.lru_cache(1 << 16)
def _words_of(text: str) -> tuple[str, ...]:
    words: list[str] = []
    text = cleaned(text)
    for pattern, replacement in _FOLDS:
        text = pattern.sub(replacement, text)
    for word in treebank_words(text):
        if _UNSPACED_LETTER.search(word):
            words += [part for part in _PARTS.findall(word) if part[0].isalnum()]
        else:
            words.append(word)
    return tuple(words)


def units_to_mask(tokenizer: Tokenizer, ids: Sequence[int]) -> list[list[int]]:
    """Positions of the tokens of each word, in order: what is masked together.

    A combining mark belongs to the letter before it, though it is a piece of its own. Letters of scripts without spaces are words of
    their own, and so are those of a text that is one word: a text is not to be masked as a whole.
    """
    units: list[list[int]] = []
    for group in tokenizer.word_groups(ids):
        text = _text_of(tokenizer, [ids[position] for position in group])
        if units and _MARK.match(text):
            units[-1] += group
        else:
            units.append(group)
    if len(units) == 1:
        return list(_letters(tokenizer, ids, units[0], any_script=True))
    return [part for unit in units for part in _letters(tokenizer, ids, unit)]


def _letters(
    tokenizer: Tokenizer, ids: Sequence[int], unit: list[int], any_script: bool = False
) -> Iterator[list[int]]:
    """The unit cut between tokens where a letter begins, beside a letter of a script without spaces."""
    if any(ids[position] >= START_OF_TEXT for position in unit):
        yield unit
        return
    texts = [tokenizer.bytes_of(ids[position]) for position in unit]
    part = [unit[0]]
    for number, position in enumerate(unit[1:], start=1):
        if texts[number][0] & 0xC0 != 0x80:  # else inside a character, which has four bytes at most
            near = texts[max(0, number - 4) : number], texts[number : number + 4]
            left, right = (b"".join(side).decode("utf-8", errors="replace") for side in near)
            unspaced = any(_UNSPACED_LETTER.match(sign) for sign in (left[-1], right[0]))
            if (any_script or unspaced) and not _MARK.match(right):
                yield part
                part = []
        part.append(position)
    yield part


def _text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(map(tokenizer.bytes_of, ids)).decode("utf-8", errors="replace")
