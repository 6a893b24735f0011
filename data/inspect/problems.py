"""What is wrong with a data set, and how much of it there is."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Literal

from data.text.tokenizer import Tokenizer

SHOWN_TOKENS = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong. An error makes the exit code 1; a warning is for judgement.

    where        file or folder
    offset, key  byte offset in the shard and key of the sample, where one sample is meant
    """

    severity: Literal["error", "warning"]
    where: str
    reason: str
    offset: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f" byte {self.offset}"
        key = "" if self.key is None else f" key {self.key!r}"
        line = f"{self.severity}: {self.where}{place}{key}: {self.reason}"
        # Names and reasons hold pieces of the data: nothing of them may steer a terminal.
        return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)


@dataclasses.dataclass
class Totals:
    """Counts of a whole lint. problems: the first ones, as many as are to be shown."""

    max_problems: int
    shards: int = 0
    samples: int = 0
    errors: int = 0
    warnings: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, problem: Problem) -> bool:
        """Count a problem; whether it is to be shown."""
        self.errors += problem.severity == "error"
        self.warnings += problem.severity == "warning"
        if len(self.problems) < self.max_problems:
            self.problems.append(problem)
            return True
        return False

    def as_json(self) -> str:
        fields = {"version": 1, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1, ensure_ascii=True) + "\n"


def shown(token_ids: Iterable[int]) -> str:
    some = sorted(token_ids)
    pieces = [repr(tokenizer().decode([i])) if 0 <= i < Tokenizer.vocab_size else "?" for i in some[:SHOWN_TOKENS]]
    text = ", ".join(f"{i} ({piece})" for i, piece in zip(some, pieces, strict=False))
    return text + (f" and {len(some) - SHOWN_TOKENS} more" if len(some) > SHOWN_TOKENS else "")


@functools.lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    return Tokenizer.load()
