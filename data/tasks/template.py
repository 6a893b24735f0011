"""A text in a template with <spe> in it, where the answer is read (papers.md 1.5)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from data.attributes import WORD_TARGET
from data.batch import Sequences
from data.config import SPE_PLACE, TEXT_PLACE, TaskConfig
from data.shards import DatasetError
from data.tasks.base import Answers, Task, TaskContext
from data.tasks.candidates import check_distinct, class_names
from data.text.vocabulary import Vocabulary

_LETTERS_OF_A_TOKEN = 64
"""Twice what the longest has, so that nothing is encoded which would be cut off again and again."""


class Template:
    """template: with {text} and <spe>, each once; max_text: tokens of the whole, end-of-text included."""

    def __init__(self, template: str, vocabulary: Vocabulary, max_text: int) -> None:
        self.vocabulary, self.max_text = vocabulary, max_text
        self._before, self._after = template.split(SPE_PLACE)

    def filled(self, text: str) -> tuple[list[int], int]:
        """(tokens, index of <spe> among them). The text gives way to the template, so that <spe> and what follows are never cut off."""
        limit = self.max_text
        text = " ".join(text.split())[: limit * _LETTERS_OF_A_TOKEN]
        while True:
            before, after = (self._encode(part, text) for part in (self._before, self._after))
            too_long = len(before) + len(after) + 1 - (limit - 1)
            if too_long <= 0 or not text:
                break
            text = _shortened(text, too_long)
        return [*before, self.vocabulary.spe, *after, self.vocabulary.end], len(before)

    def _encode(self, part: str, text: str) -> list[int]:
        return self.vocabulary.encode(part.replace(TEXT_PLACE, text), 1 << 20)[:-1]


def _shortened(text: str, tokens: int) -> str:
    """Some words less, where that many tokens are too many; of a single word (or a language without spaces) some signs less."""
    words = text.split()
    if len(words) > 1:
        return " ".join(words[: max(1, len(words) - max(1, tokens // 2))])
    return text[: -max(1, tokens // 2)]


class TemplatedTask(Task):
    """A task that reads a text in a template, where the names of classes are label words or answers. Raises DatasetError where the template
    leaves no place for a text."""

    answers: ClassVar[Answers] = "classes"

    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return config.max_text

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        config, classes = context.config, context.info.classes
        check_distinct(classes, context.vocabulary, config.max_text, config.name)
        self.candidates = class_names(classes, context.vocabulary, config.max_text, WORD_TARGET)
        self.template = Template(config.template, context.vocabulary, config.max_text)
        own = len(self.template.filled("")[0])
        if own >= config.max_text:
            raise DatasetError(
                f"task {config.name}: template={config.template!r} has {own} tokens without a text: raise max_text={config.max_text} above "
                "that, or shorten it"
            )

    @property
    def kept_candidates(self) -> tuple[Sequences, ...]:
        return (self.candidates,)

    def shared_candidates(self, generator: np.random.Generator) -> Sequences:
        return self.candidates

    @property
    def default_temperature(self) -> str:
        return "text"
