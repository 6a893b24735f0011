"""BLEU and ROUGE-L of captions with several references. Words are those of data/text/words.py, as in evaluation/metrics/cider.py.

Both are corpus scores as the field's common implementation gives them (pycocoevalcap, which tests compare with).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MAX_N = 4
BETA = 1.2
"""ROUGE-L's weight of recall against precision."""
_TINY, _SMALL = 1e-15, 1e-9
"""What the common implementation adds to counts that may be zero."""

Words = Sequence[str]


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 in [0, 1] over the whole corpus (Papineni et al., 2002); the brevity penalty takes each image's reference of the
    nearest length, the shorter one of two."""
    return bleu_of(bleu_counts(captions, references).sum(axis=0)).tolist()


def bleu_counts(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """[images, 10]: of each caption the n-grams of n = 1 to 4 that are right, those that it has, its words, and those of the nearest
    reference. Their sums make BLEU."""
    rows = []
    for words, refs in zip(captions, references, strict=True):
        right, guessed = [], []
        for n in range(1, MAX_N + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for ref in refs:
                most |= ngrams(ref, n)
            own = ngrams(words, n)
            right.append((own & most).total())
            guessed.append(own.total())
        nearest = min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        rows.append([*right, *guessed, len(words), nearest])
    return np.array(rows, dtype=np.float64)


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """[..., 4] of sums [..., 10] over a corpus."""
    right, guessed = sums[..., :MAX_N], sums[..., MAX_N : 2 * MAX_N]
    ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    products = np.cumprod((right + _TINY) / (guessed + _SMALL), axis=-1)
    return products ** (1 / np.arange(1, MAX_N + 1)) * brevity[..., None]


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean over images, in [0, 1]."""
    scores = rouge_l_by_image(captions, references)
    return sum(scores) / len(scores)


def rouge_l_by_image(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Of each image, the F measure of the longest common subsequence (Lin, 2004): the best precision and the best recall
    of an image's references."""
    scores = []
    for words, refs in zip(captions, references, strict=True):
        common = [_longest_common(words, ref) for ref in refs]
        precision = max(common) / max(len(words), 1)
        recall = max(c / max(len(ref), 1) for c, ref in zip(common, refs, strict=True))
        both = precision > 0 and recall > 0
        scores.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if both else 0.0)
    return scores


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _longest_common(one: Words, other: Words) -> int:
    """Words of their longest common subsequence."""
    best = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, candidate in enumerate(other, start=1):
            before, best[place] = best[place], before + 1 if word == candidate else max(best[place], best[place - 1])
    return best[-1]
