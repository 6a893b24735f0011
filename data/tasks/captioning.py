"""Captioning: the words of a caption after the picture (papers.md 1.5)."""

from __future__ import annotations

from data.attributes import CAPTION_VISUAL
from data.batch import Sequences
from data.config import TaskConfig
from data.tasks.base import Captioned, CaptionedTask
from data.tasks.written import WritingTask


class Captioning(CaptionedTask, WritingTask):
    @classmethod
    def text_tokens(cls, config: TaskConfig) -> int:
        return 2 * config.max_text

    def prefix(self, examples: list[Captioned]) -> Sequences:
        return Sequences(segments=(self.visual_segment([e.visual for e in examples], CAPTION_VISUAL),))

    def written(self, example: Captioned) -> list[int]:
        return example.tokens
