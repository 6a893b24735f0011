"""Masked text: whole words are masked (letters, in scripts without spaces), and every masked position is compared with the
vocabulary (papers.md 1.5)."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import torch

from data.attributes import TEXT_INPUT
from data.batch import Sequences, TaskBatch
from data.config import TaskConfig
from data.decode.text import decode_text
from data.seeding import rng
from data.tasks.base import Sample, WordTask, captions_of
from data.tasks.segments import text_segment


@dataclasses.dataclass(frozen=True)
class Masked:
    """tokens: ids with masks applied; masked: positions to predict; originals: the ids that stood there."""

    tokens: list[int]
    masked: list[int]
    originals: list[int]

    @property
    def original_tokens(self) -> list[int]:
        """The text before it was masked."""
        tokens = list(self.tokens)
        for position, token in zip(self.masked, self.originals, strict=True):
            tokens[position] = token
        return tokens


class MaskedText(WordTask):
    reads = ("text", "image_caption", "video_caption")
    has_pictures = False

    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return config.max_text

    @classmethod
    def read_outs(cls, config: TaskConfig) -> int:
        return max(1, round(config.mask_rate * config.max_text))

    @property
    def default_temperature(self) -> str:
        return "text"

    def example(self, sample: Sample, generator: np.random.Generator | None) -> Masked:
        texts = [decode_text(sample["txt"])] if "txt" in sample else captions_of(sample)
        # A single text draws nothing, so that streams of plain text do not depend on how captions are chosen.
        text = texts[int(generator.integers(len(texts)))] if generator is not None and len(texts) > 1 else texts[0]
        tokens = self.vocabulary.encode(text, self.config.max_text)
        words = self.vocabulary.words(tokens)
        # In evaluation the masks are a function of the text, so every run predicts the same words.
        masks = generator or rng(zlib.crc32(text.encode("utf-8", "surrogatepass")))
        # Never all of them: a text that is masked as a whole says nothing of its words.
        count = max(1, min(round(self.config.mask_rate * len(words)), len(words) - 1))
        chosen = sorted(int(w) for w in masks.choice(len(words), size=count, replace=False))
        masked = [position for w in chosen for position in words[w]]
        originals = [tokens[position] for position in masked]
        spe_share, random_share = self.config.mask_shares
        for position in masked:
            draw = 0.0 if generator is None else generator.random()
            if generator is None or draw < spe_share:  # evaluation never shows the word, whatever the shares are
                tokens[position] = self.vocabulary.spe
            elif draw < spe_share + random_share:
                tokens[position] = int(masks.integers(self.vocabulary.num_candidates - 1))
        return Masked(tokens, masked, originals)

    def batch(self, examples: list[Masked], generator: np.random.Generator | None) -> TaskBatch:
        read = [(row, 1 + position) for row, e in enumerate(examples) for position in e.masked]
        inputs = Sequences(segments=(text_segment([e.tokens for e in examples], TEXT_INPUT),))
        originals = [token for e in examples for token in e.originals]
        return self.word_batch(inputs, torch.tensor(read), originals, generator)
