"""VQA accuracy: an answer is right as far as people gave it (Antol et al., 2015).

Every one of the ten people in turn is left out: the answer is worth a third for each of the other nine who gave it, at most 1; the mean
of the ten is the accuracy. Answers are compared in a common form.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

ENOUGH = 3
"""People who say the same make an answer wholly right."""
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
"""Punctuation to the common tool. Others stay: 50% and 50 are two answers."""
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must should would i they we who you",
    "'re": "they you",
    "'ll": "it that they you",
    "'d": "he it they who you",
    "'s": "he here how she that there what when where who",
    "'m": "i",
}
"""Endings, and what they follow. Left out is what would be another word: hell, id, ill, its, lets, shed, shell, wed, well, were, whore."""
_WHOLE = {
    (stem + ending).replace("'", ""): stem + ending for ending, stems in _CONTRACTIONS.items() for stem in stems.split()
} | {"maam": "ma'am", "oclock": "o'clock", "yall": "y'all"}
"""A contraction without its apostrophe, and with it."""


def normal(answer: str) -> str:
    """Lower case, number words as digits, no article and no punctuation; contractions with their apostrophe ("dont"), by the rule of
    English. The common tool has a list of them, which may differ in rare ones.

    Punctuation is what that tool takes for it: a sign that stands beside a space anywhere in the answer is left out, any other becomes a
    space, and where a comma stands between digits all are left out. A point stays before a digit alone.
    """
    asked = " ".join(answer.lower().split())
    has_long_number = re.search(r"\d,\d", asked) is not None
    text = asked
    for sign in _SIGNS:
        is_left_out = has_long_number or f" {sign}" in asked or f"{sign} " in asked
        text = text.replace(sign, "" if is_left_out else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_WHOLE.get(word) or _DIGITS.get(word, word) for word in text.split()]
    return " ".join(word for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """In [0, 1]. answers: one of each person; of fewer than four, all others must agree, and a single one must be it."""
    count, wanted = Counter(map(normal, answers))[normal(answer)], min(ENOUGH, len(answers) - 1)
    return _worth(count, len(answers), wanted)


def best_constant(all_answers: Sequence[Sequence[str]]) -> float:
    """The accuracy of the one answer that is best for all questions."""
    worth: dict[str, float] = defaultdict(float)
    for answers in all_answers:
        wanted = min(ENOUGH, len(answers) - 1)
        for answer, count in Counter(map(normal, answers)).items():
            worth[answer] += _worth(count, len(answers), wanted)
    return max(worth.values()) / len(all_answers)


def _worth(count: int, people: int, wanted: int) -> float:
    """Of an answer that `count` of the people gave: each of these leaves count - 1 others who gave it, each of the rest count."""
    if not wanted:
        return float(count > 0)
    left_out = count * min(1, (count - 1) / wanted) + (people - count) * min(1, count / wanted)
    return left_out / people
