"""Token ids as the model sees them: all of CLIP's, or only those that the training texts of the data sets use.

A restricted vocabulary keeps small runs small: candidates of masked text and captions are all words, and 49,411 of
them are too many for a CPU. It has every token of a single byte besides, so that any text can be encoded: a token that it lacks is
spelled. Those that no training text uses are read and compared with where a text needs them, but are no candidates otherwise. So
what is said of texts of known words does not depend on them.

Ids: words | bytes that are no words | the five special tokens, <SPE> the very last.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from data.text.tokenizer import END_OF_TEXT, NUM_BYTES, SPE, START_OF_TEXT, Tokenizer
from data.text.words import joined, units_to_mask

NUM_SPECIALS = SPE - START_OF_TEXT + 1


class UnknownTokenError(ValueError):
    """A text holds a token outside a vocabulary that cannot spell it."""

    of_one_rank = True


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """`clip_ids[i]` is the CLIP id of the model's id i. The first `num_words` of them are those that training texts use."""

    tokenizer: Tokenizer
    clip_ids: tuple[int, ...]
    num_words: int

    @classmethod
    def full(cls, tokenizer: Tokenizer) -> Vocabulary:
        return cls.restricted(tokenizer, range(tokenizer.vocab_size))

    @classmethod
    def restricted(cls, tokenizer: Tokenizer, clip_ids: Iterable[int]) -> Vocabulary:
        """These tokens, and all that any text can be spelled with."""
        words = {i for i in clip_ids if i < START_OF_TEXT}
        return cls._of(tokenizer, words, set(range(NUM_BYTES)) - words)

    @classmethod
    def closed(cls, tokenizer: Tokenizer, clip_ids: Iterable[int]) -> Vocabulary:
        """These tokens and no others, as runs had it before there were bytes."""
        return cls._of(tokenizer, {i for i in clip_ids if i < START_OF_TEXT}, set())

    @classmethod
    def _of(cls, tokenizer: Tokenizer, words: set[int], others: set[int]) -> Vocabulary:
        return cls(tokenizer, (*sorted(words), *sorted(others), *range(START_OF_TEXT, SPE + 1)), len(words))

    @functools.cached_property
    def _own_ids(self) -> dict[int, int]:
        return {clip: own for own, clip in enumerate(self.clip_ids)}

    @property
    def size(self) -> int:
        return len(self.clip_ids)

    @property
    def num_candidates(self) -> int:
        """Words that a read-out may mean, and end-of-text as the last: candidates 0 .. num_candidates - 1 (see `candidate`)."""
        return self.num_words + 1

    @property
    def num_spelling(self) -> int:
        """Bytes that are no words. They are the candidates after end-of-text, for texts that need them."""
        return self.size - self.num_words - NUM_SPECIALS

    @property
    def end(self) -> int:
        return self._own_ids[END_OF_TEXT]

    @property
    def spe(self) -> int:
        return self.size - 1

    def candidate(self, own_id: int) -> int:
        """Index of a word, of end-of-text or of a byte among the candidates."""
        if own_id == self.end:
            return self.num_words
        return own_id if own_id < self.num_words else own_id + 1

    def candidate_token(self, candidate: int) -> int:
        """The token that a candidate stands for; the inverse of `candidate`."""
        if candidate == self.num_words:
            return self.end
        return candidate if candidate < self.num_words else candidate - 1

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of the text and end-of-text, at most `max_tokens` in all. Raises UnknownTokenError, of a closed vocabulary alone."""
        own: list[int] = []
        for clip in self.tokenizer.encode(text, limit=max_tokens - 1):
            own += [self._own_ids[clip]] if clip in self._own_ids else self._spelled(clip, text)
        return [*own[: max_tokens - 1], self.end]

    def _spelled(self, clip: int, text: str) -> list[int]:
        try:
            return [self._own_ids[byte] for byte in self.tokenizer.spelled(clip)]
        except KeyError as error:
            raise UnknownTokenError(
                f"token {self.tokenizer.decode([clip])!r} of {text[:60]!r} is not in the restricted vocabulary of {self.size} tokens, "
                "which is of an earlier version and cannot spell: use data.vocabulary=full, or start a run anew"
            ) from error

    def decode(self, own_ids: Iterable[int]) -> str:
        """Text up to the first end-of-text, its words put together as far as that can be known."""
        clip = []
        for own in own_ids:
            if own == self.end:
                break
            clip.append(self.clip_ids[own])
        return joined(self.tokenizer.decode(clip))

    def copied(self, text: str) -> str:
        """The text as `decode` gives it back where every token is right: what a perfect caption looks like."""
        return joined(self.tokenizer.decode(self.tokenizer.encode(text)))

    def words(self, own_ids: list[int]) -> list[list[int]]:
        """Positions of the tokens of each word, as they are masked; end-of-text is no word."""
        return units_to_mask(self.tokenizer, [self.clip_ids[own] for own in own_ids if own != self.end])
