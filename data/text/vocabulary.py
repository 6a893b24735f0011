"""Token ids as the model sees them: all of CLIP's, or only those that the data sets' texts use.

A restricted vocabulary keeps small runs small: candidates of masked text and captions are all words, and 49,411 of
them are too many for a CPU. The five special tokens are always the last ids, <SPE> the very last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from data.text.tokenizer import END_OF_TEXT, SPE, START_OF_TEXT, Tokenizer

NUM_SPECIALS = SPE - START_OF_TEXT + 1


class UnknownTokenError(ValueError):
    """A text holds a token outside the restricted vocabulary."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """`clip_ids[i]` is the CLIP id of the model's id i."""

    tokenizer: Tokenizer
    clip_ids: tuple[int, ...]
    _own_ids: dict[int, int]

    @classmethod
    def full(cls, tokenizer: Tokenizer) -> Vocabulary:
        return cls.restricted(tokenizer, range(tokenizer.vocab_size))

    @classmethod
    def restricted(cls, tokenizer: Tokenizer, clip_ids: Iterable[int]) -> Vocabulary:
        words = sorted({i for i in clip_ids if i < START_OF_TEXT})
        ids = (*words, *range(START_OF_TEXT, SPE + 1))
        return cls(tokenizer, ids, {clip: own for own, clip in enumerate(ids)})

    @property
    def size(self) -> int:
        return len(self.clip_ids)

    @property
    def num_candidates(self) -> int:
        """Words that a read-out may mean: all but the specials, and end-of-text (ids 0 .. num_candidates - 1 with
        end-of-text as the last; see `candidate`)."""
        return self.size - NUM_SPECIALS + 1

    @property
    def end(self) -> int:
        return self._own_ids[END_OF_TEXT]

    @property
    def spe(self) -> int:
        return self.size - 1

    def candidate(self, own_id: int) -> int:
        """Index of a word or of end-of-text among the candidates."""
        return self.num_candidates - 1 if own_id == self.end else own_id

    def candidate_token(self, candidate: int) -> int:
        """The token that a candidate stands for; the inverse of `candidate`."""
        return self.end if candidate == self.num_candidates - 1 else candidate

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """Ids of the text and end-of-text, at most `max_tokens` in all."""
        clip = [*self.tokenizer.encode(text)[: max_tokens - 1], END_OF_TEXT]
        try:
            return [self._own_ids[i] for i in clip]
        except KeyError as error:
            raise UnknownTokenError(
                f"token {self.tokenizer.decode([error.args[0]])!r} of {text[:60]!r} is not in the restricted vocabulary of "
                f"{self.size} tokens: use data.vocabulary=full, or add the data set to the run that fixed the vocabulary"
            ) from error

    def decode(self, own_ids: Iterable[int]) -> str:
        """Text up to the first end-of-text."""
        clip = []
        for own in own_ids:
            if own == self.end:
                break
            clip.append(self.clip_ids[own])
        return self.tokenizer.decode(clip)

    def words(self, own_ids: list[int]) -> list[list[int]]:
        """Positions of the tokens of each word; end-of-text is no word."""
        return self.tokenizer.word_groups([self.clip_ids[own] for own in own_ids if own != self.end])
