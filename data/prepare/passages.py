"""Plain text, cut into passages of about as many words as a model reads at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_SENTENCE_END = re.compile(r"(?<=[.!?;])[\"')\]]*\s+")
_HEADING = re.compile(r"(= )+[^=]+( =)+")
_MAX_UNKNOWN = 0.1


def is_val(block: int, fraction: float) -> bool:
    """Of any n blocks from the start, round(n * fraction) are val, spread evenly."""
    return int((block + 1) * fraction + 0.5) > int(block * fraction + 0.5)


def passages(lines: Iterable[str], words: int) -> Iterator[str]:
    """Sentences joined until they have `words` words or more. Long ones are cut; headings end a passage."""
    gathered: list[str] = []
    for sentence in _sentences(lines):
        if sentence is not None:
            gathered += sentence.split()
        while len(gathered) >= 2 * words:
            yield " ".join(gathered[:words])
            gathered = gathered[words:]
        if len(gathered) >= words or (sentence is None and len(gathered) > words // 2):
            yield " ".join(gathered)
            gathered = []
        elif sentence is None:
            gathered = []  # a remnant too short to learn from
    if len(gathered) > words // 2:
        yield " ".join(gathered)


def _sentences(lines: Iterable[str]) -> Iterator[str | None]:
    """Cleaned sentences; None at a heading."""
    for line in lines:
        if _HEADING.fullmatch(line.strip()):
            yield None
            continue
        for raw in _SENTENCE_END.split(line):
            cleaned = clean(raw)
            if cleaned:
                yield cleaned


def clean(sentence: str) -> str:
    """Undo wikitext's marks: ` @-@ ` is a hyphen inside a word, `<unk>` a rare word that was taken out.

    Sentences that lost more than a tenth of their words become empty, the others close the gap.
    """
    sentence = re.sub(r" @([-,.])@ ", r"\1", sentence)
    unknown = sentence.count("<unk>")
    if unknown > _MAX_UNKNOWN * len(sentence.split()):
        return ""
    sentence = sentence.replace("<unk>", " ") if unknown else sentence
    sentence = re.sub(r"\(\s*\)|\"\s*\"", " ", sentence)
    return " ".join(sentence.split())
